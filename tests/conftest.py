import asyncio

# pytest-asyncio asks for the current event loop before it makes its own. Where none was ever set, Python makes one on the
# spot, which nobody closes, and the test that runs when it is collected fails with a ResourceWarning.
asyncio.set_event_loop(None)
