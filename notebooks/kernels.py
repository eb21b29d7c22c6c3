"""Kernels that start warm: a process imports torch and plg_utils once, and each notebook's kernel is forked from it.

A kernel of its own spends three to five seconds of a core on these imports, and a demo starts six. Only on Linux: a
process that has loaded such libraries cannot be forked safely elsewhere.
"""

import multiprocessing
import os
import sys
import threading
from typing import Any

import pandas
from jupyter_client import AsyncKernelManager, KernelManager
from jupyter_client.provisioning import LocalProvisioner

PRELOADED = ["ipykernel.kernelapp", "plg_utils.stages"]  # not pyplot, which must find a running kernel


def serve(arguments: list[str], folder: str, variables: dict[str, str]) -> None:
    """Be a kernel: in the forked process."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # a group of its own, which signals reach as a whole
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    pandas.set_option("display.max_columns", 20)  # its default in a notebook; imported before, it took a terminal's
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = ["kernel", *arguments]
    IPKernelApp.launch_instance(argv=arguments)


def end_with_parent() -> None:
    """End this kernel when the process that asked for it does, however that one ends."""
    multiprocessing.parent_process().join()
    os._exit(1)


class Forked(multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn").Process):
    """A forked kernel, with the part of subprocess.Popen that jupyter_client uses."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Wait for the end."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)


class Provisioner(LocalProvisioner):
    """Starts kernels by forking."""

    async def launch_kernel(self, cmd: list[str], **how: Any) -> dict[str, Any]:
        """Start a kernel; cmd: python, its options, -m ipykernel_launcher, the kernel's arguments."""
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        multiprocessing.set_forkserver_preload(PRELOADED)
        self.process = Forked(target=serve, args=(arguments, str(how.get("cwd") or os.getcwd()), dict(how["env"])))
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class Warm:
    """What makes a kernel manager start its kernels by forking."""

    async def _async_pre_start_kernel(self, **options: Any) -> Any:
        self.kernel_id = self.kernel_id or "warm"
        self.provisioner = self.provisioner or Provisioner(
            kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
        )
        return await super()._async_pre_start_kernel(**options)


class Manager(Warm, AsyncKernelManager):
    """The manager of warm kernels, for papermill."""


class BlockingManager(Warm, KernelManager):
    """The same for nbval."""
