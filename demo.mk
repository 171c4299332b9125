# The demo, step by step: each file is made once, so a second run starts where the first one stopped.
# These are the commands a user types.
.PHONY: report
report: demo/report/report.html
	@cat demo/report/report.md
	@echo "\nReport: demo/report/report.html   Curves: demo/report/curves.png   Numbers: demo/report/report.json"

demo/model/config.json:
	entrodrop prepare smollm2 --output demo/model

demo/data/train.jsonl:
	entrodrop prepare gsm8k --output demo/data

demo/eval/base/eval.json: | demo/model/config.json
	entrodrop eval demo/model --suite quick --dtype fast --allow-code-execution --output demo/eval/base

demo/run/.finished: | demo/model/config.json demo/data/train.jsonl demo/eval/base/eval.json
	tune run entrodrop_tune/recipes/lora_finetune --config entrodrop_tune/configs/demo.yaml resume=true
	touch $@

demo/eval/tuned/eval.json: | demo/run/.finished
	entrodrop eval demo/run/best --suite quick --dtype fast --allow-code-execution --output demo/eval/tuned

demo/report/report.html: demo/eval/base/eval.json demo/eval/tuned/eval.json
	entrodrop report demo/run --base demo/eval/base --tuned demo/eval/tuned --output demo/report
