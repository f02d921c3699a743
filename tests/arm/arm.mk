.PHONY: test-arm
test-arm: $(DEV_STAMP) ## run int4 models in vLLM on an emulated aarch64 (as root; half an hour, 7 GiB)
	$(BIN)/python -m tests.arm.run var/arm/root var/bench-models bench/results/test-arm.txt
