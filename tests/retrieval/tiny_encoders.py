"""Encoders of a few thousand random weights, laid out as sentence-transformers does, and what their vectors are."""

import json
import warnings

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{number}" for number in range(60)]
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def configs():
    """One small configuration of each architecture."""
    size = len(WORDS) + 5
    ids = {"vocab_size": size, "max_position_embeddings": 40, "pad_token_id": 1}
    return {
        "bert": transformers.BertConfig(**_SHAPE, **ids),
        "xlm-roberta": transformers.XLMRobertaConfig(**_SHAPE, **ids),
        "mpnet": transformers.MPNetConfig(**_SHAPE, **ids),
        "distilbert": transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **ids),
        "modernbert": transformers.ModernBertConfig(**_SHAPE, **ids, local_attention=8, cls_token_id=2, sep_token_id=3),
        "qwen3": transformers.Qwen3Config(**_SHAPE, **ids, num_key_value_heads=2, head_dim=8),
    }


def make_encoder(folder, architecture="bert", *, pooling=None, normalise=True, dense=None, said=None, old=False):
    """Write a tiny encoder; without `pooling` it is a plain transformer. Return its torch model."""
    torch.manual_seed(len(architecture))
    inner = folder / "0_Transformer" if old else folder
    inner.mkdir(parents=True)
    config = configs()[architecture]
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # the usual start is so small that any text has nearly the same vector
        torch.nn.init.normal_(parameter, std=0.4) if parameter.dim() > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(inner)
    tokenizer().save(str(inner / "tokenizer.json"))
    if said is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    if pooling is None:
        return model
    parts = [("Transformer", inner.name if old else ""), ("Pooling", "1_Pooling")]
    pooling_config = {f"pooling_mode_{pooling}": True} if old else {"pooling_mode": pooling, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling_config)
    if dense is not None:
        parts.append(("Dense", "2_Dense"))
        rows = {"in_features": 32, "out_features": dense.shape[0], "bias": False}
        kind = {"activation_function": "torch.nn.modules.activation.Tanh"}
        write_json(folder / "2_Dense" / "config.json", rows | kind)
        save_file({"linear.weight": dense}, folder / "2_Dense" / "model.safetensors")
    if normalise:
        parts.append(("Normalize", "3_Normalize"))
    rows = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (kind, path) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    return model


def write_json(file, table):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table))


def tokenizer():
    """A word a token, <s> before and </s> after."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<pad>", "<s>", "</s>", "<mask>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return made


def reference(model, texts, pooling, *, dense=None, normalise=True):
    """The vectors as their definitions say, a text at a time and so without padding."""
    rows = []
    read = tokenizer()
    for text in texts:
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([read.encode(text).ids])).last_hidden_state[0]
        row = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0).values, "lasttoken": hidden[-1]}[pooling]
        rows.append(row if dense is None else torch.tanh(dense @ row))
    vectors = torch.stack(rows)
    return (vectors / vectors.norm(dim=1, keepdim=True) if normalise else vectors).numpy()
