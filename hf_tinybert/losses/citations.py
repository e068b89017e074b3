"""The papers that the losses come from, as the model card cites them."""

TINYBERT = "Jiao et al. (2020). TinyBERT: Distilling BERT for Natural Language Understanding. arXiv:1909.10351."
MINILM = (
    "Wang et al. (2020). MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained "
    "Transformers. arXiv:2002.10957."
)
MINILM_V2 = (
    "Wang et al. (2021). MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained "
    "Transformers. arXiv:2012.15828."
)
MOBILEBERT = (
    "Sun et al. (2020). MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices. arXiv:2004.02984."
)
DISTILBERT = (
    "Sanh et al. (2019). DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter. "
    "arXiv:1910.01108."
)
PATIENT = "Sun et al. (2019). Patient Knowledge Distillation for BERT Model Compression. arXiv:1908.09355."
SENTENCE = (
    "Reimers and Gurevych (2020). Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation. "
    "arXiv:2004.09813."
)
