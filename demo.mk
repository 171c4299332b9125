# The demo, step by step: each file is made once, so a second run starts where the first one stopped.
# These are the commands a user types; only the paths would differ.
DEMO ?= demo

.PHONY: report
report: $(DEMO)/report/report.html
	@cat $(DEMO)/report/report.md
	@echo "\nReport: $(DEMO)/report/report.html   Curves: $(DEMO)/report/curves.png   Numbers: $(DEMO)/report/report.json"

$(DEMO)/model/config.json:
	entrodrop prepare smollm2 --output $(DEMO)/model

$(DEMO)/data/train.jsonl:
	entrodrop prepare gsm8k --output $(DEMO)/data

$(DEMO)/eval/base/eval.json: | $(DEMO)/model/config.json
	entrodrop eval $(DEMO)/model --suite quick --allow-code-execution --output $(DEMO)/eval/base

$(DEMO)/run/.finished: | $(DEMO)/model/config.json $(DEMO)/data/train.jsonl $(DEMO)/eval/base/eval.json
	tune run entrodrop_tune/recipes/lora_finetune --config entrodrop_tune/configs/demo.yaml \
	  output_dir=$(DEMO)/run model.path=$(DEMO)/model \
	  data.train=$(DEMO)/data/train.jsonl data.validation=$(DEMO)/data/validation.jsonl resume=true
	touch $@

$(DEMO)/eval/tuned/eval.json: | $(DEMO)/run/.finished
	entrodrop eval $(DEMO)/run/best --suite quick --allow-code-execution --output $(DEMO)/eval/tuned

$(DEMO)/report/report.html: $(DEMO)/eval/base/eval.json $(DEMO)/eval/tuned/eval.json
	entrodrop report $(DEMO)/run --base $(DEMO)/eval/base --tuned $(DEMO)/eval/tuned --output $(DEMO)/report
