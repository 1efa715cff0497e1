# SPDX-License-Identifier: GPL-3.0-only
"""The only package that imports llama_cpp. Import its modules; the package itself loads nothing.

`engine.load` is the way in. The step loop there joins the parts: `library` (the shared library and its
log), `model` (load, context), `vocab`, `batch`, `slots`, `prefill` (how much prompt a step takes), `job`
(one request), `sampler` and `constrained` (choosing tokens), `gbnf` and `grammar` (constraints),
`template` (messages), `logprobs`. `gguf` and `footprint` read facts without a loaded model.
"""
