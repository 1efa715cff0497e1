# SPDX-License-Identifier: GPL-3.0-only
"""The only package that imports llama_cpp. Importing the package itself loads nothing.

`engine.load` is the way in. `engine` is the step loop; `request_queue`, `job`, `active_requests`, `prefill`
and `token_step` are its stages. `native` wraps the library, `kv` keeps the cache, `sampling` and
`constraints` choose tokens, `prompts` renders messages; `gguf` and `footprint` read facts without a model.
"""
