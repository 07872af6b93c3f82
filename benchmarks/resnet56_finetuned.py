"""Cut a trained ResNet-56 for CIFAR-10 to Li et al.'s A and B, fine-tune both, and score every step.

Run:     python benchmarks/resnet56_finetuned.py RECORD.json --weights FILE.th --train A.npz --val B.npz --epochs 40
Writes:  a record of the table in docs/training.md, anew after every training; models in --work, where it goes on if
         it was stopped
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deploy.record import cpu_model, git_commit, installed_versions

COLUMNS = ["network", "MACs (M)", "top-1 (%)", "cut, not trained", "fine-tuned"]
PRESETS = ("resnet56-A", "resnet56-B")


class Commands:
    """The commands that a user would type, on one data set."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Keep the options."""
        self.work, self.epochs = options.work, options.epochs
        self.val = options.val.resolve()
        data = {"_delete_": True, "type": "npz", "train": str(options.train.resolve()), "val": str(self.val)}
        self.settings = [f"data={data}", f"schedule.epochs={options.epochs}"]

    def imported(self, weights: Path) -> Path:
        """Return the dense network's file."""
        file = self.work / "resnet56.safetensors"
        self._run("import", "resnet56_cifar", weights, "--out", file, "--force")
        return file

    def cut(self, dense: Path, preset: str) -> Path:
        """Return the slim network's file."""
        file = self.work / f"{preset}.safetensors"
        self._run("prune", "resnet34_a", dense, "--set", f"preset={preset}", "--out", file, "--force")
        return file

    def tuned(self, preset: str) -> Path:
        """Return the file of the fine-tuned network."""
        slim, file = (self.work / f"{preset}{end}.safetensors" for end in ("", "-cifar_finetune"))
        if not file.exists():
            settings = [option for setting in self.settings for option in ("--set", setting)]
            self._run("classify", "train", "cifar_finetune", "--set", f"start.file={slim}", *settings, "--out", file)
        return file

    def score(self, model: Path) -> dict[str, Any]:
        """Return the figures of a network on the validation images."""
        figures: dict[str, Any] = json.loads(self._run("classify", "eval", model, self.val, "--json"))
        return figures

    def _run(self, *arguments: object) -> str:
        command = [sys.executable, "-m", "espalier", *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def rows(commands: Commands, weights: Path) -> Iterator[list[list[str]]]:
    """Yield the table's rows so far, after every step that changes them."""
    dense = commands.imported(weights)
    found = commands.score(dense)
    table = [["ResNet-56", f"{found['macs'] / 1e6:.1f}", f"{found['top1']:.2f}", "", ""]]
    for preset in PRESETS:
        found = commands.score(commands.cut(dense, preset))
        name = preset.replace("resnet", "ResNet-")
        table.append([name, f"{found['macs'] / 1e6:.1f}", "", f"{found['top1']:.2f}", ""])
        yield table
    for place, preset in enumerate(PRESETS, 1):
        table[place][-1] = f"{commands.score(commands.tuned(preset))['top1']:.2f}"
        yield table


def main() -> None:
    """Cut, train, score and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    for name in ("weights", "train", "val"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/resnet56"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    commands = Commands(options)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU ({cpu_model()})"
    for table in rows(commands, options.weights.resolve()):
        record = {
            "kind": f"ResNet-56 on CIFAR-10, cut and fine-tuned for {options.epochs} epochs on {device}",
            "epochs": options.epochs,
            "seed": 0,
            "commit": git_commit(),
            "versions": installed_versions(),
            "columns": COLUMNS,
            "table": table,
        }
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
