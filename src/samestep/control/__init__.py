"""Stop flags, what ranks agree on, and the watch over a step that hangs."""

from samestep.control.abort import abort_device_collectives, unhurried
from samestep.control.agreement import StopFlag, agreed, decided_by_main, everyones, first_on_each_machine, leave_together
from samestep.control.board import Board, NoBoard, NodeStore, StoreBoard, is_victim, make_board, survivor
from samestep.control.gate import gate
from samestep.control.made_up import as_rank
from samestep.control.progress import Progress
from samestep.control.watchdog import Watchdog

__all__ = [
    "Board",
    "NoBoard",
    "NodeStore",
    "Progress",
    "StopFlag",
    "StoreBoard",
    "Watchdog",
    "abort_device_collectives",
    "agreed",
    "as_rank",
    "decided_by_main",
    "everyones",
    "first_on_each_machine",
    "gate",
    "is_victim",
    "leave_together",
    "make_board",
    "survivor",
    "unhurried",
]
