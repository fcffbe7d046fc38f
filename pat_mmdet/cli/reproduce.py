"""Train the cells of a table of results, and collect their results.

A cell is PAIR/METHOD, as swin_t-res18/pat, and trains in WORK_DIR/TABLE/SETTINGS/CELL/seed_S.
Finished trainings are skipped and interrupted ones resumed, so the same command can be given again
at any time. Teachers are trained once, with seed 0, in WORK_DIR/TABLE/teacher/PAIR/seed_0.

Examples:
    python tools/reproduce.py --list --table coco
    python tools/reproduce.py --table digits --cells '*/none' '*/pat' --seeds 0 1
    python tools/reproduce.py --table digits --collect --add "none, twice as long=work_dirs/long"
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from math import isnan
from pathlib import Path
from types import FrameType
from typing import IO

from mmengine.config import Config

from pat_mmdet.cli.arguments import add_cfg_options, add_traceback
from pat_mmdet.utils import RunDir, load_config, read_record, write_atomic, write_record
from pat_mmdet.utils.config import SETTINGS
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import is_whole
from pat_mmdet.utils.paths import CONFIGS, TOOLS
from pat_mmdet.utils.runs import hardware, lock_folder, num_cores, revision, versions
from pat_mmdet.utils.tables import Cell, Table, find_table, load_tables

# Options of a distiller, which a teacher's own training does not have.
STUDENT_ONLY = ("model.student.", "model.method.", "model.teacher")

# Seconds between lines on the progress of trainings whose output is in files.
PROGRESS_INTERVAL = 60


@dataclass
class Job:
    """A training of a table.

    Attributes:
        title (str): Name in messages.
        cfg (Config): Config, with options applied.
        run (RunDir): Work dir and length.
        command (list[str]): Command that starts or resumes it.
        record (dict): What decides its result, for ``run.json``.
        teacher (RunDir, optional): Training that has to be finished before.
        process (subprocess.Popen, optional): The training, once started.
        lock (IO, optional): Lock of the work dir, held while it trains.
    """

    title: str
    cfg: Config
    run: RunDir
    command: list[str]
    record: dict
    teacher: RunDir | None = None
    process: subprocess.Popen | None = None
    lock: IO | None = None

    def check_folder(self) -> None:
        """Check that the work dir holds no training with other settings.

        Raises:
            ValueError: If it does.
        """
        before = read_record(self.run.folder)
        for key, value in self.record.items():
            if before and before.get(key) != value:
                raise ValueError(
                    f"{self.run.folder} holds a training with {key} {before.get(key)}, not "
                    f"{value}; give the same options or another --work-dir, or remove that folder"
                )

    def start(self, args: argparse.Namespace) -> str | None:
        """Start the training; return the reason if there is nothing to start."""
        folder = self.run.folder
        if self.teacher is not None and not self.teacher.is_finished():
            return "left out, its teacher is not done"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock = lock_folder(folder)
        except BlockingIOError:
            return "skipped, another process is training it"
        if self.run.is_finished():
            if is_whole(self.run.checkpoint):
                self.lock.close()
                return "done already"
            print(f"[reproduce] {self.title}: {self.run.checkpoint} is damaged", flush=True)
        note = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(self.command),
            "revision": revision(),
            "hardware": hardware(args.gpus, args.partition),
            "jobs": args.jobs,
            "versions": versions(),
            "exit_code": None,
        }
        starts = [*read_record(folder).get("starts", []), note]
        write_record(folder, {**self.record, "starts": starts})
        environment = {"PORT": free_port(), "MASTER_PORT": free_port(), **os.environ}
        environment["PYTHON"] = sys.executable
        if args.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // args.jobs)))
        program = sys.executable if self.command[0] == "python" else self.command[0]
        output = open(folder / "output.log", "a") if args.jobs > 1 else None  # noqa: SIM115
        print(f"[reproduce] {self.title}: training, logs in {folder}", flush=True)
        # The training inherits the lock: it holds even if this process is killed.
        self.process = subprocess.Popen(
            [program, *self.command[1:]], env=environment, stdout=output, stderr=output,
            pass_fds=[self.lock.fileno()], start_new_session=True,
        )  # fmt: skip
        return None

    def describe_progress(self) -> str:
        """Return how far the training is."""
        left = self.run.time_left() / 60
        duration = "" if isnan(left) else f", about {max(left, 1):.0f} min left"
        return f"{self.run.progress()}/{self.run.steps} {self.run.unit_name}{duration}"

    def kill(self, number: int) -> None:
        """Send a signal to the training and its data loaders."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def finish(self) -> str | None:
        """Record how the training ended; return a message if it failed."""
        folder, code = self.run.folder, self.process.returncode
        self.kill(signal.SIGKILL)  # data loaders may outlive a crash
        record = read_record(folder)
        record["starts"][-1]["exit_code"] = code
        write_record(folder, record)
        self.lock.close()
        if code == 0 and self.run.is_finished():
            return None
        logs = [*sorted(folder.glob("*/*.log")), *folder.glob("output.log")]
        return f"{self.title} (exit code {code}): see {logs[-1] if logs else 'the output above'}"


def free_port() -> str:
    """Return a port on which the processes of a training can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@cache
def read_config(cell: Cell, settings: str, options: tuple[str, ...]) -> Config:
    """Load the config of a cell as tools/train.py does, with options of the command line."""
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    given = parser.parse_args(["--cfg-options", *options] if options else []).cfg_options
    path = str(CONFIGS / cell.config)
    return load_config(path, given, *(() if cell.is_teacher else (cell.method, settings)))


def cell_folder(base: Path, cell: Cell, settings: str) -> Path:
    """Return the folder of a cell, which has a work dir for each seed."""
    return base / "teacher" / cell.pair if cell.is_teacher else base / settings / cell.name


def make_job(table: Table, cell: Cell, seed: int, args: argparse.Namespace) -> Job:
    """Build the training of a cell.

    Raises:
        FileNotFoundError: If its config does not exist.
        ValueError: If the batch cannot be divided among the GPUs.
    """
    given = list(args.cfg_options)
    if cell.is_teacher:
        given = [option for option in given if not option.startswith(STUDENT_ONLY)]
    elif args.teacher_checkpoint and cell.method != "none":
        given.insert(0, f"model.teacher_checkpoint={args.teacher_checkpoint}")
    cfg = read_config(cell, args.settings, tuple(given))
    folder = cell_folder(Path(args.work_dir, table.name), cell, args.settings) / f"seed_{seed}"
    run = RunDir.from_config(folder, cfg)

    options, teacher = [f"randomness.seed={seed}"], None
    if cell.teacher and not args.teacher_checkpoint:
        teacher = make_job(table, table.cells[cell.teacher], 0, args).run
        options.append(f"model.teacher_checkpoint={teacher.checkpoint}")
    if args.gpus > 1 and not any(key.startswith("train_dataloader.batch_size=") for key in given):
        batch = cfg.get("auto_scale_lr", {}).get("base_batch_size")
        if batch is None or batch % args.gpus:
            raise ValueError(
                f"the batch of {cell.config} (auto_scale_lr.base_batch_size {batch}) cannot be "
                f"divided among {args.gpus} GPUs; take another number, or give "
                "--cfg-options train_dataloader.batch_size=..."
            )
        options.append(f"train_dataloader.batch_size={batch // args.gpus}")

    config, tools = os.path.relpath(CONFIGS / cell.config), os.path.relpath(TOOLS)
    name = f"{table.name}-{cell.pair}-{cell.method}-{seed}"
    command = {
        "none": ["python", f"{tools}/train.py", config, "--work-dir"],
        "pytorch": ["bash", f"{tools}/dist_train.sh", config, str(args.gpus), "--work-dir"],
        "slurm": ["env", f"GPUS={args.gpus}", "bash", f"{tools}/slurm_train.sh",
                  str(args.partition), name, config],
    }[args.launcher] + [str(folder)]  # fmt: skip
    if not cell.is_teacher:
        command += ["--method", cell.method]
        command += ["--settings", "published"] if args.settings == "published" else []
    command += ["--resume", "--cfg-options", *options, *given]
    record = {
        "table": table.name,
        "cell": cell.name,
        "config": cell.config,
        "settings": None if cell.is_teacher else args.settings,
        "seed": seed,
        "options": given,
        "length": [run.steps, run.unit],
    }
    return Job(f"{table.name} {cell.name} seed {seed}", cfg, run, command, record, teacher)


def plan(table: Table, args: argparse.Namespace) -> list[Job]:
    """Build the selected trainings, those of the teachers that they need first."""
    cells = table.select(args.cells)
    needed = set() if args.teacher_checkpoint else {cell.teacher for cell in cells}
    return [
        make_job(table, cell, seed, args)
        for cell in table.cells.values()
        if cell in cells or cell.name in needed
        for seed in ([0] if cell.is_teacher else sorted(set(args.seeds)))
    ]


def check_data(table: Table, cfg: Config, work_dir: Path) -> None:
    """Check that the data of a table exist; generate them where that is possible.

    Raises:
        FileNotFoundError: If they do not exist and cannot be generated.
    """
    datasets = [cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]
    files = [Path(item.get("data_root", ""), item.get("ann_file", "")) for item in datasets]
    work_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(work_dir, wait=True):  # two calls must not generate at once
        missing = [file for file in files if not file.exists()]
        if missing and not table.generator:
            raise FileNotFoundError(f"{missing[0]} does not exist; to get the data, {table.data}")
        if missing:
            tool, *flags = table.generator
            command = [sys.executable, str(TOOLS / tool), cfg.data_root, *flags]
            if subprocess.run(command, check=False).returncode:
                sys.exit("[reproduce] the data could not be generated, see above")


def train(jobs: list[Job], args: argparse.Namespace) -> list[str]:
    """Run trainings, ``args.jobs`` at a time; return a message for each that failed."""
    waiting = list(jobs)
    running: list[Job] = []
    failures: list[str] = []
    report_at = time.monotonic() + PROGRESS_INTERVAL
    try:
        while waiting or running:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                failures += filter(None, [job.finish()])
            for job in list(waiting):
                unfinished = [other.run for other in (*waiting, *running)]
                if len(running) < args.jobs and job.teacher not in unfinished:
                    waiting.remove(job)
                    reason = job.start(args)
                    if reason is None:
                        running.append(job)
                    else:
                        print(f"[reproduce] {job.title}: {reason}", flush=True)
            if args.jobs > 1 and time.monotonic() > report_at:
                for job in running:
                    print(f"[reproduce] {job.title}: {job.describe_progress()}", flush=True)
                report_at = time.monotonic() + PROGRESS_INTERVAL
            time.sleep(0.2 if running else 0)
    finally:
        for job in running:
            job.kill(signal.SIGTERM)
        for job in running:
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(timeout=60)
            job.kill(signal.SIGKILL)
    return failures


def show_list(tables: list[Table], args: argparse.Namespace) -> None:
    """Print the cells of tables with their published results and commands."""
    for table in tables:
        print(f"# {table.name}: {table.title}")
        for job in plan(table, args):
            cell = table.cells[job.record["cell"]]
            published = cell.published_text or "none"
            print(f"\n{cell.name}, seed {job.record['seed']}; published: {published}")
            print(f"    {shlex.join(job.command)}")
        print()


def read_runs(folder: Path, cell: Cell, settings: str) -> dict[int, tuple[RunDir, dict]]:
    """Return the work dirs of a cell with their ``run.json``, by seed."""
    runs = {}
    for path in folder.glob("seed_*"):
        seed = path.name.partition("_")[2]
        if seed.isdigit():
            record = read_record(path)
            # Without a record it was started by hand, with a command of --list.
            runs[int(seed)] = (
                RunDir(path, *record["length"])
                if record
                else RunDir.from_config(path, read_config(cell, settings, ())),
                record,
            )
    return runs


def read_rows(table: Table, work_dir: Path, variant: str = "") -> list[dict[str, str]]:
    """Read the rows of a work dir.

    Args:
        table (Table): The table.
        work_dir (Path): Its work dir.
        variant (str): What sets its trainings apart; cells without any are left out then.
    """
    base = work_dir / table.name
    rows = []
    for settings in [name for name in SETTINGS if name == "equal" or (base / name).is_dir()]:
        for cell in table.cells.values():
            if settings == "equal" or not cell.is_teacher:
                runs = read_runs(cell_folder(base, cell, settings), cell, settings)
                if runs or not variant:
                    shown = "" if cell.is_teacher else settings
                    rows.append(table.row(cell, shown, runs, variant))
    return rows


def collect(table: Table, work_dir: Path, added: Sequence[str]) -> None:
    """Write the results of the finished trainings, as Markdown, CSV and figure.

    Args:
        table (Table): The table.
        work_dir (Path): Its work dir.
        added (Sequence[str]): Further work dirs, as NAME=WORK_DIR.

    Raises:
        FileNotFoundError: If a further work dir has no training of the table.
    """
    from pat_mmdet.utils.table_plot import plot_table  # not at the top, as `--help` is quick

    rows = read_rows(table, work_dir)
    for entry in added:
        name, _, folder = entry.partition("=")
        found = read_rows(table, Path(folder), name)
        if not found:
            raise FileNotFoundError(f"--add {entry!r}: no training of table {table.name} is there")
        rows += found
    table.fill_alone(rows)
    write_atomic(work_dir / f"{table.name}.csv", table.csv(rows))
    write_atomic(work_dir / f"{table.name}.md", table.markdown(rows))
    figure = plot_table(table, rows)
    if figure is not None:
        figure.savefig(work_dir / f"{table.name}.png")
    print(table.markdown(rows))
    written = ".md and .csv" if figure is None else ".md, .csv and .png"
    print(f"[reproduce] written: {work_dir / table.name}{written}")


@contextmanager
def resumable() -> Iterator[None]:
    """End the program with code 130 at Ctrl-C, SIGTERM or SIGHUP, and say how to go on.

    Only the first of these signals interrupts, so that others do not disturb the clean-up.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; give the same command again to resume", file=sys.stderr)
        sys.exit(130)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="show cells, published results and commands")
    add("--collect", action="store_true", help="write WORK_DIR/TABLE.md, .csv and .png")
    add(
        "--add",
        nargs="+",
        default=[],
        metavar="NAME=WORK_DIR",
        help="with --collect: rows of the trainings in another work dir, under this name",
    )
    add("--table", help=f"one of: {', '.join(load_tables())}")
    add("--cells", nargs="+", default=["*"], metavar="PATTERN", help="as 'swin_t-res18/*' '*/pat'")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--settings", choices=list(SETTINGS), default="equal", help="equal, or as each published")
    add("--teacher-checkpoint", help="path or URL, in place of the teacher's cell or the config's")
    add("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    add("--gpus", type=int, default=1, help="of each training; the effective batch stays the same")
    add("--partition", help="of Slurm")
    add("--work-dir", default="work_dirs/reproduce")
    add("--jobs", type=int, default=1, help="trainings at a time")
    add("--cfg-options", nargs="+", default=[], help="settings of all trainings, as of train.py")
    add_traceback(parser)
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Check the arguments, and that this machine can launch the trainings.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If arguments are wrong or do not fit together.
    """
    for option in args.cfg_options:
        if "=" not in option:
            raise ValueError(f"--cfg-options takes key=value, not {option!r}")
    for entry in args.add:
        if not all(entry.partition("=")):
            raise ValueError(f"--add takes NAME=WORK_DIR, not {entry!r}")
    if args.add and not args.collect:
        raise ValueError("--add needs --collect")
    if min(args.gpus, args.jobs) < 1 or min(args.seeds) < 0:
        raise ValueError("--gpus and --jobs must be at least 1, --seeds at least 0")
    if args.launcher == "none" and args.gpus > 1:
        raise ValueError("--gpus needs --launcher pytorch or slurm")
    if (args.launcher == "slurm") != (args.partition is not None):
        raise ValueError("--launcher slurm and --partition need each other")
    if args.launcher == "pytorch" and args.jobs > 1:
        raise ValueError("--jobs needs --launcher none or slurm; pytorch gives all GPUs to one job")
    checkpoint = args.teacher_checkpoint
    if checkpoint and "://" not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"--teacher-checkpoint {checkpoint!r} does not exist")
    if args.table is None and not args.list:
        raise ValueError(f"--table is needed; known tables: {', '.join(load_tables())}")
    if args.list or args.collect:
        return

    if args.launcher == "slurm" and shutil.which("srun") is None:
        raise ValueError("--launcher slurm needs srun, which is not in PATH; use a login node")
    if args.launcher == "pytorch":
        import torch

        found = torch.cuda.device_count()
        if 0 < found < args.gpus:
            raise ValueError(f"--gpus {args.gpus}, but there are only {found} here")


def run_table(table: Table, args: argparse.Namespace) -> list[Job]:
    """Train the selected cells of a table.

    Returns:
        list[Job]: The trainings. Those that another process runs may not be finished.

    Raises:
        FileNotFoundError: If the data do not exist and cannot be generated.
        ValueError: If a work dir holds a training with other settings.
        SystemExit: If a training failed.
    """
    jobs = plan(table, args)
    for job in jobs:
        job.check_folder()
    check_data(table, jobs[0].cfg, Path(args.work_dir))
    failures = train(jobs, args)
    if failures:
        sys.exit("\n".join(["[reproduce] failed; give the command again to retry:", *failures]))
    return jobs


def main() -> None:
    """List, train or collect, as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback), resumable():
        check_arguments(args)
        if args.list:
            show_list([find_table(args.table)] if args.table else [*load_tables().values()], args)
        elif args.collect:
            collect(find_table(args.table), Path(args.work_dir), args.add)
        else:
            run_table(find_table(args.table), args)


if __name__ == "__main__":
    main()
