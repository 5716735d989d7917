"""Serving: from a model and a catalogue to ranked products and why. This room knows models by what they return, and no metric.

In reading order: `index` (exact and approximate search), its engines `faiss_engine` and `milvus_engine`,
`retriever` (model, catalogue and index together), `explain` (why a product came back), `onnx` (the query encoder without torch).
"""
