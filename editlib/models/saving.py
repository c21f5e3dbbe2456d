"""Write a model as a folder that transformers loads."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights in safetensors, configuration and tokenizer, into a folder; raises `OSError` if that fails."""
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):  # written for their owner alone
            path.chmod((folder / "config.json").stat().st_mode)
    except Exception as error:  # safetensors and tokenizers tell of a full disk by errors of their own
        raise OSError(reason(error)) from error


def reason(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
