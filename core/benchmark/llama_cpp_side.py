"""llama.cpp's side of a benchmark, on the CPU, in a process of its own.

``peer_program`` runs it. It writes the weights as a GGUF file, and calls llama.cpp's C functions without any loop of
the Python package around them. It imports nothing of core.
"""

import contextlib
import ctypes
import json
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROUND = 256  # a context of another size is created again


class Side:
    """A loaded or random model in llama.cpp."""

    threads = 1
    model: Any = None
    context: Any = None
    size = 0
    window: int | None = None
    written: tuple[str, str] | None = None

    def hello(self, task: dict[str, Any]) -> dict[str, Any]:
        """Imports the packages; sets the number of threads."""
        import gguf  # noqa: F401  # import it before a benchmark begins, not in its middle
        import llama_cpp

        self.threads = task["threads"]
        self.writer = runpy.run_path(str(Path(__file__).with_name("gguf_file.py")))
        self.file = Path(tempfile.gettempdir()) / "model.gguf"
        llama_cpp.llama_backend_init()
        return {"version": llama_cpp.__version__}

    def load(self, task: dict[str, Any]) -> dict[str, Any]:
        """Loads a checkpoint of floats in Hugging Face's layout. The GGUF file is written once, before, and not
        timed."""
        folder = Path(task["path"])
        if self.written != (task["path"], task["format"]):
            config = json.loads((folder / "config.json").read_bytes())
            self._write(config, task["format"], _weights_of(folder))
            self.written = (task["path"], task["format"])
        started = time.perf_counter()
        self._open()
        return {"seconds": time.perf_counter() - started}

    def make(self, task: dict[str, Any]) -> dict[str, Any]:
        """Makes a model of random weights."""
        import numpy as np

        random = np.random.default_rng(0)

        def weight(name: str, shape: tuple[int, ...]) -> Any:
            if len(shape) == 1:
                return np.ones(shape, np.float32)
            return random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)

        self._write(task["config"], task["format"], weight)
        self._open()
        with contextlib.suppress(OSError):  # a system may refuse while the file is mapped; its folder is removed later
            self.file.unlink()
        return {}

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """Generates exactly ``generate`` tokens greedily. A token counts as generated when its id is on the host."""
        prompt, count = task["prompt"], task["generate"]
        self._clear(len(prompt) + count)
        started = time.perf_counter()
        token = int(self._step(prompt).argmax())
        first = time.perf_counter()
        for _ in range(count - 1):
            token = int(self._step([token]).argmax())
        return {"first_token": first - started, "decode": time.perf_counter() - first}

    def logits(self, task: dict[str, Any]) -> dict[str, Any]:
        """Logits after each of ``parts``, lists of token ids that are read one list after the other."""
        self._clear(sum(map(len, task["parts"])))
        return {"logits": [self._step(part).tolist() for part in task["parts"]]}

    def _write(self, config: dict[str, Any], kind: str, weight: Callable[[str, tuple[int, ...]], Any]) -> None:
        config = self.writer["completed"](config)
        self._close()
        self.writer["write"](self.file, config, kind, weight)
        self.window, self.vocab_size = config.get("sliding_window"), config["vocab_size"]

    def _open(self) -> None:
        import llama_cpp

        self._close()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(self.file).encode(), options)
        if not self.model:
            raise RuntimeError("llama.cpp refuses the GGUF file")

    def _close(self) -> None:
        import llama_cpp

        if self.context:
            llama_cpp.llama_free(self.context)
        if self.model:
            llama_cpp.llama_model_free(self.model)
        self.context = self.model = None
        self.size = 0

    def _clear(self, tokens: int) -> None:
        """Makes an empty context with room for so many tokens, or empties the present one."""
        import llama_cpp

        if self.window is not None and tokens > self.window:
            raise ValueError(f"llama.cpp ignores the window of {self.window} tokens, and would attend to more")
        size = -(-tokens // _ROUND) * _ROUND
        if size != self.size:
            if self.context:
                llama_cpp.llama_free(self.context)
            options = llama_cpp.llama_context_default_params()
            options.n_ctx = options.n_batch = size
            options.n_threads = options.n_threads_batch = self.threads
            self.context, self.size = llama_cpp.llama_init_from_model(self.model, options), size
            if not self.context:
                self.size = 0
                raise RuntimeError(f"llama.cpp cannot make a context of {size} tokens")
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _step(self, ids: list[int]) -> Any:
        """Reads tokens; returns the logits of the last, which the next step overwrites."""
        import llama_cpp
        import numpy as np

        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)  # waits for the step
        return np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,))


def _weights_of(folder: Path) -> Callable[[str, tuple[int, ...]], Any]:
    """A function that reads tensors of a directory's safetensors files as float32."""
    import numpy as np

    places: dict[str, tuple[Path, int, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                places[name] = (path, 8 + length + entry["data_offsets"][0], entry["dtype"])

    def weight(name: str, shape: tuple[int, ...]) -> Any:
        path, offset, dtype = places[name]
        stored = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[dtype]
        array = np.fromfile(path, stored, int(np.prod(shape)), offset=offset).reshape(shape)
        if dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32)

    return weight
