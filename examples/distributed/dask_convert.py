#!/usr/bin/env python3
"""Converts a disk image on a Dask cluster, in parts, with the command img-partition.

Without --scheduler it starts a cluster of processes on this machine. With it, every worker has to see the
files and the command under the same paths.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", help="the image to convert")
    parser.add_argument("target", help="where the result goes")
    parser.add_argument("--command", default="img-partition", help="the command img-partition")
    parser.add_argument("-f", dest="source_format", help="the format of the source; detected unless given")
    parser.add_argument("-O", dest="format", default="raw", help="the format to write (raw)")
    parser.add_argument("-o", dest="options", help="options of the format, NAME=VALUE,...")
    parser.add_argument("--parts", type=int, default=8, help="how many parts, at most (8)")
    parser.add_argument("--plan", help="where the plan goes (TARGET.plan.json)")
    parser.add_argument("--folder", help="where the state is kept (.NAME.parts beside the target)")
    parser.add_argument("--allow-references", default="none", help="which files the source may refer to")
    parser.add_argument("--scheduler", help="the address of a cluster's scheduler")
    parser.add_argument("--workers", type=int, default=3, help="processes of the cluster on this machine (3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each part (1)")
    parser.add_argument("--retries", type=int, default=3, help="how often a part is tried again (3)")
    parser.add_argument(
        "--kill-one",
        action="store_true",
        help="kills a worker that is busy, to show that it does no harm",
    )
    parser.add_argument("--compare", metavar="FORMAT", help="compares with qemu-img; FORMAT is the source's")
    return parser.parse_args()


def step(command):
    """Runs a step; its own words are the error's."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def part(command, note):
    """Does one part, in a process that does not outlive its worker. Runs on a worker."""
    die_with_worker = None
    if sys.platform == "linux":
        libc, set_death_signal = ctypes.CDLL(None), 1
        die_with_worker = lambda: libc.prctl(set_death_signal, signal.SIGKILL)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_worker,
    )
    if note:
        with open(note, "w") as file:
            file.write(str(os.getpid()))
    _, told = child.communicate()
    if child.returncode != 0:
        raise RuntimeError(told.strip() or f"{command[0]} ended with {child.returncode}")
    return os.getpid()


def kill_busy(note, finished):
    """Kills the worker that does the first part, as a crash would."""
    while not finished():
        try:
            with open(note) as file:
                worker = int(file.read())
            os.kill(worker, signal.SIGKILL)
            return worker
        except (FileNotFoundError, ValueError):
            time.sleep(0.001)
    return None


def convert(client, args, plan, can_kill):
    folder = [] if args.folder is None else ["--folder", args.folder]
    command = [args.command, "plan", "-O", args.format, "--parts", str(args.parts)]
    command += ["--allow-references", args.allow_references]
    if args.source_format:
        command += ["-f", args.source_format]
    if args.options:
        command += ["-o", args.options]
    count = int(step(command + [args.source, plan]))
    step([args.command, "prepare", *folder, plan, args.target])
    note = os.path.abspath(f"{plan}.busy") if can_kill else None
    common = [args.command, "part", "-m", str(args.threads), *folder]
    common += ["--allow-references", args.allow_references, plan, args.target, args.source]
    # Not pure: a part that is done twice is right, and one that is not done for the sake of an
    # earlier result is not.
    futures = [
        client.submit(
            part,
            [*common, str(index)],
            note if index == 0 else None,
            retries=args.retries,
            pure=False,
        )
        for index in range(count)
    ]
    if can_kill:
        killed = kill_busy(note, futures[0].done)
        print("no worker was killed" if killed is None else f"killed worker {killed}")
    workers = client.gather(futures)
    if note and os.path.exists(note):
        os.remove(note)
    step([args.command, "seal", *folder, plan, args.target])
    print(f"{count} parts by {len(set(workers))} processes")


def main():
    args = arguments()
    from dask.distributed import Client, LocalCluster

    for name in ("source", "target", "folder"):
        if getattr(args, name):
            setattr(args, name, os.path.abspath(getattr(args, name)))
    plan = os.path.abspath(args.plan or f"{args.target}.plan.json")
    try:
        if args.scheduler:
            with Client(args.scheduler) as client:
                convert(client, args, plan, False)
        else:
            cluster = LocalCluster(
                n_workers=args.workers, threads_per_worker=1, processes=True, dashboard_address=None
            )
            with cluster, Client(cluster) as client:
                convert(client, args, plan, args.kill_one)
        if args.compare:
            formats = {"vhd": "vpc"}
            command = ["qemu-img", "compare", "-f", args.compare]
            command += ["-F", formats.get(args.format, args.format), args.source, args.target]
            print(step(command).strip())
    except (RuntimeError, OSError, ValueError) as error:
        sys.exit(f"dask_convert: {error}")


if __name__ == "__main__":
    main()
