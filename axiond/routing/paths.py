"""Which paths of the API engines answer, and what a request on them can hold. Values only."""

JSON_PATHS = frozenset((
    "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/embeddings", "/v2/embed", "/rerank", "/v1/rerank", "/v2/rerank", "/score",
    "/v1/score", "/tokenize", "/detokenize", "/pooling", "/classify", "/cohere/v2/chat", "/generative_scoring",
    "/inference/v1/generate", "/v1/chat/completions/render", "/v1/completions/render", "/v1/messages/render",
    "/v1/responses/render", "/v1/chat/completions/derender", "/v1/completions/derender",
))  # fmt: skip
FORM_PATHS = frozenset(("/v1/audio/transcriptions", "/v1/audio/translations"))
LIGHT_PATHS = frozenset(("/tokenize", "/detokenize", "/v1/messages/count_tokens")) | {
    path for path in JSON_PATHS if path.endswith(("/render", "/derender"))
}
PATHS = JSON_PATHS | FORM_PATHS
PROMPT_PATHS = frozenset(path for path in JSON_PATHS if path != "/detokenize" and not path.endswith("/derender"))
CHAT_PATHS = frozenset((
    "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/chat/completions/render", "/v1/responses",
    "/v1/responses/render", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/render", "/cohere/v2/chat", "/tokenize",
))  # fmt: skip
ANSWER_PATHS = CHAT_PATHS | {"/v1/completions", "/v1/completions/render", "/inference/v1/generate"}
IMAGE_PATHS = CHAT_PATHS | {
    path for path in PROMPT_PATHS if path.endswith(("embeddings", "embed", "rerank", "score", "pooling", "classify"))
}
