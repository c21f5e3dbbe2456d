"""Which workers are asked for."""

from dataclasses import dataclass

from editlib.errors import EditlibError

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers on a Ray cluster: where it is, how many of them, and what each gets.

    `address` is `local` for a cluster on this machine that is gone afterwards, `auto` for the one this machine is part
    of, or HOST:PORT. `workers` is how many, or None for as many as there is room for, also on nodes that come later.
    Each gets `cpus` cores, which is as many threads, and `gpus` of a GPU's kind; with GPUs models are on them.
    """

    address: str = LOCAL
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0
    timeout: float | None = None  # seconds of a task; None: twenty times the longest so far, and at least ten minutes
    patience: float = 1800  # seconds to wait while there is no worker at all
    dashboard: bool = False  # Ray's own page, where the cluster is local
    json: bool = False  # progress as lines of JSON on stderr, in place of a bar

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus < 1 or self.gpus < 0:
            raise EditlibError(
                f"workers={self.workers}, cpus={self.cpus} and gpus={self.gpus:g} must be at least 1, 1 and 0"
            )
        if self.address.startswith("ray://"):
            raise EditlibError(
                f"address {self.address} is Ray Client's; start this on a machine of the cluster, and give auto or "
                "HOST:PORT"
            )

    @property
    def each(self) -> str:
        """What a worker gets, in words."""
        cpus = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{self.gpus:g} GPU{'s' if self.gpus > 1 else ''} and {cpus}" if self.gpus else cpus
