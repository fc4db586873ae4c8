"""A GPU that is none: the real device code runs on it, and what it orders is checked.

`FakeCuda.installed()` puts it in torch.cuda's place. Bytes are moved at once, in this process's
memory, and time is counted, not spent: what is checked is which of two uses of the same memory is
ordered before the other (`happens_before`), by streams, events, waits of the host and locks, so
that a race is found whether or not it would have shown. `FakeNccl` stands for NCCL.
"""

from castor_lab.fake_cuda.cuda import FakeCuda
from castor_lab.fake_cuda.happens_before import Fault
from castor_lab.fake_cuda.nccl import FakeNccl
from castor_lab.fake_cuda.streams import Event, Stream

__all__ = ["Event", "FakeCuda", "FakeNccl", "Fault", "Stream"]
