# cython: language_level=3, binding=True, freethreading_compatible=True
"""The one extension module: devices behind the C ABI, the CPU device, and the benchmark's probes.

Every method checks its arguments, fills a C struct, makes one call without the GIL and raises on failure. Arrays cross as buffers; NumPy is not needed here.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from "dashinfer_device.h" nogil:
    const uint32_t DI_ABI_VERSION
    const char* DI_CAPSULE_NAME
    ctypedef struct di_instr:
        pass
    ctypedef struct di_slot:
        pass
    ctypedef struct di_weight_desc:
        pass
    ctypedef struct di_sample:
        pass
    ctypedef struct di_kv_desc:
        int32_t layers, heads, head_size, block_tokens, blocks
        uint8_t dtype
    ctypedef struct di_program_desc:
        uint32_t struct_size
        int32_t n_slots, n_weights, n_body, n_tail
        const di_slot* slots
        const di_instr* instrs
        const di_weight_desc* weights
        di_kv_desc kv
        int64_t arena_bytes
        int32_t max_tokens, tail_rows, max_seqs, max_logprobs, experts_per_token, host_blocks
    ctypedef struct di_step:
        uint32_t struct_size
        int32_t T, B, R, position_rows, position_stride, max_blocks
        const int32_t* tokens
        const int32_t* positions
        const int32_t* q_offset
        const int32_t* kv_len
        const int32_t* prompt_len
        const int32_t* bidirectional
        const int32_t* adapter
        const int32_t* block_table
        const int32_t* logit_row
        const di_sample* sample
        int32_t n_clear
        const int32_t* clear_blocks
        int32_t n_external
        const int32_t* external_row
        const float* external
        int32_t* out_token
        int32_t* out_status
        float* out_logprob
        int32_t* out_rank
        int32_t* out_top_ids
        float* out_top_logprobs
        float* out_logits
        float* out_hidden
        int32_t n_swap_out
        const int32_t* swap_out
        int32_t n_swap_in
        const int32_t* swap_in
    ctypedef struct di_options:
        uint32_t struct_size
        int32_t threads
        const char* isa
    ctypedef struct di_info:
        uint32_t struct_size
        int32_t threads, col_align, head_align, async_depth, unified_memory
        int64_t memory_total, memory_free
        char tier[32]
        char detail[128]
    ctypedef struct di_stats:
        uint32_t struct_size
        int64_t weight_bytes, kv_bytes, arena_bytes, last_step_ns
        int64_t op_ns[32]
    ctypedef struct di_device_api:
        uint32_t abi_version, struct_size
        const char* name
        int (*probe)(char*, size_t) noexcept nogil
        int (*open)(const di_options*, void**, char*, size_t) noexcept nogil
        void (*close)(void*) noexcept nogil
        int (*info)(void*, di_info*) noexcept nogil
        int (*program_create)(void*, const di_program_desc*, void**, char*, size_t) noexcept nogil
        void (*program_free)(void*) noexcept nogil
        int (*weight_write)(void*, int32_t, int32_t, int32_t, const void**, uint8_t, char*, size_t) noexcept nogil
        int (*weight_write_codes)(void*, int32_t, int32_t, int32_t, const uint8_t**, const float**, const int16_t**, char*, size_t) noexcept nogil
        int (*submit)(void*, const di_step*, uint64_t*, char*, size_t) noexcept nogil
        int (*wait)(void*, uint64_t, char*, size_t) noexcept nogil
        int64_t (*kv_block_bytes)(void*) noexcept nogil
        int (*kv_move)(void*, int, int32_t, const int32_t*, void**, uint64_t*) noexcept nogil
        int (*stats)(void*, di_stats*) noexcept nogil
        int (*profile)(void*, int) noexcept nogil
        int (*slot_write)(void*, int32_t, int32_t, const float*) noexcept nogil
        int (*slot_read)(void*, int32_t, int32_t, float*) noexcept nogil

cdef extern from "runtime/device.h" namespace "di" nogil:
    const di_device_api* cpu_device_api()

cdef extern from "runtime/probe.h" namespace "di" nogil:
    cdef cppclass MachineProbe:
        @staticmethod
        MachineProbe* create(const char* isa, int threads, char* why, size_t why_bytes)
        bint map(size_t bytes)
        double read_bandwidth()
        double matrix_peak(int64_t rounds)
    size_t describe_tiers(char* out, size_t size)
    size_t describe_cpu(char* out, size_t size)
    size_t resident_bytes()
    size_t peak_resident_bytes()
    int usable_cpus()

cdef enum:
    WHY = 512  # bytes for a device's sentence about a failure

ABI_VERSION = DI_ABI_VERSION


class NativeError(Exception):
    """A native call failed; the message is the device's own sentence."""


def cpu_capsule():
    """The CPU device's function table as a PyCapsule."""
    return PyCapsule_New(<void*>cpu_device_api(), DI_CAPSULE_NAME, NULL)


def probe(capsule):
    """None when the capsule's device can be used on this machine, else the reason."""
    cdef const di_device_api* api = _api(capsule)
    cdef char why[WHY]
    cdef int status
    why[0] = 0
    with nogil:
        status = api.probe(why, WHY)
    return None if status == 0 else (why.decode("utf-8", "replace") or f"probe failed with code {status}")


cdef const di_device_api* _api(capsule) except NULL:
    if not PyCapsule_IsValid(capsule, DI_CAPSULE_NAME):
        raise NativeError("not a device: expected a PyCapsule named " + DI_CAPSULE_NAME.decode())
    cdef const di_device_api* api = <const di_device_api*>PyCapsule_GetPointer(capsule, DI_CAPSULE_NAME)
    if api.abi_version != DI_ABI_VERSION or api.struct_size < sizeof(di_device_api):
        raise NativeError(
            f"device '{api.name.decode()}' speaks interface version {api.abi_version}, this package {DI_ABI_VERSION}; install matching versions"
        )
    return api


cdef class DeviceHandle:
    """An open device of the C ABI."""

    cdef const di_device_api* api
    cdef void* device
    cdef object capsule

    def __cinit__(self, capsule, int threads=0, isa=None):
        cdef char why[WHY]
        cdef di_options options
        cdef int status
        cdef bytes isa_bytes = isa.encode() if isa else b""
        self.capsule = capsule
        self.api = _api(capsule)
        why[0] = 0
        options.struct_size = sizeof(di_options)
        options.threads = threads
        options.isa = <const char*>isa_bytes if isa else NULL
        with nogil:
            status = self.api.open(&options, &self.device, why, WHY)
        if status != 0:
            self.device = NULL
            raise NativeError(why.decode("utf-8", "replace") or f"open failed with code {status}")

    def info(self):
        """The device's description as a dict."""
        if self.device is NULL:
            raise NativeError("the device is closed")
        cdef di_info out
        memset(&out, 0, sizeof(out))
        out.struct_size = sizeof(di_info)
        if self.api.info(self.device, &out) != 0:
            raise NativeError("the device gives no information")
        return {
            "name": self.api.name.decode(),
            "tier": out.tier.decode("utf-8", "replace"),
            "detail": out.detail.decode("utf-8", "replace"),
            "threads": out.threads,
            "col_align": out.col_align,
            "head_align": out.head_align,
            "async_depth": out.async_depth,
            "unified_memory": bool(out.unified_memory),
            "memory_total": out.memory_total,
            "memory_free": out.memory_free,
        }

    def close(self):
        """Give everything back; programs must be closed before."""
        cdef void* device = self.device
        self.device = NULL
        if device is not NULL:
            with nogil:
                self.api.close(device)

    def __dealloc__(self):
        if self.device is not NULL:
            self.api.close(self.device)


cdef class StepBinding:
    """The C struct of a Step whose arrays stay where they are."""

    cdef di_step step
    cdef object owner
    cdef Py_ssize_t tokens, seqs, rows, clears, externals  # that the arrays have room for

    def __cinit__(self, owner):
        self.owner = owner
        self.tokens, self.seqs, self.rows = len(owner.tokens), len(owner.kv_len), len(owner.logit_row)
        self.clears, self.externals = len(owner.clear_blocks), len(owner.external_row)
        memset(&self.step, 0, sizeof(di_step))
        self.step.struct_size = sizeof(di_step)
        self.step.max_blocks = owner.max_blocks
        self.step.position_stride = owner.positions.shape[1]
        self.step.tokens = <const int32_t*>_address(owner.tokens)
        self.step.positions = <const int32_t*>_address(owner.positions)
        self.step.q_offset = <const int32_t*>_address(owner.q_offset)
        self.step.kv_len = <const int32_t*>_address(owner.kv_len)
        self.step.prompt_len = <const int32_t*>_address(owner.prompt_len)
        self.step.bidirectional = <const int32_t*>_address(owner.bidirectional)
        self.step.adapter = <const int32_t*>_address(owner.adapter)
        self.step.block_table = <const int32_t*>_address(owner.block_table)
        self.step.logit_row = <const int32_t*>_address(owner.logit_row)
        self.step.sample = <const di_sample*>_address(owner.sample)
        self.step.clear_blocks = <const int32_t*>_address(owner.clear_blocks)
        self.step.external_row = <const int32_t*>_address(owner.external_row)
        self.step.out_token = <int32_t*>_address(owner.out_token)
        self.step.out_status = <int32_t*>_address(owner.out_status)
        self.step.out_logprob = <float*>_address(owner.out_logprob)
        self.step.out_rank = <int32_t*>_address(owner.out_rank)
        self.step.out_top_ids = <int32_t*>_address(owner.out_top_ids)
        self.step.out_top_logprobs = <float*>_address(owner.out_top_logprobs)

    cdef di_step* refresh(self, owner) except NULL:
        if owner is not self.owner:
            raise NativeError("a step binding belongs to another step")
        self.step.T = owner.T
        self.step.B = owner.B
        self.step.R = owner.R
        self.step.position_rows = owner.position_rows
        self.step.n_clear = owner.n_clear
        self.step.n_external = owner.n_external
        self.step.external = <const float*>NULL
        self.step.out_logits = <float*>NULL
        if owner.n_external:
            self.step.external = <const float*>_address(owner.external)
        if owner.out_logits is not None:
            self.step.out_logits = <float*>_address(owner.out_logits)
        self.step.out_hidden = <float*>NULL
        if owner.out_hidden is not None:
            self.step.out_hidden = <float*>_address(owner.out_hidden)
            if self.step.R > len(owner.out_hidden):
                raise NativeError("the step's counts exceed its arrays")
        self.step.n_swap_out = len(owner.swap_out)
        self.step.swap_out = _swaps(owner.swap_out)
        self.step.n_swap_in = len(owner.swap_in)
        self.step.swap_in = _swaps(owner.swap_in)
        if self.step.T > self.tokens or self.step.B > self.seqs or self.step.R > self.rows:
            raise NativeError("the step's counts exceed its arrays")
        if self.step.n_clear > self.clears or self.step.n_external > self.externals:
            raise NativeError("the step's counts exceed its arrays")
        return &self.step


cdef const int32_t* _swaps(array) except? NULL:
    """Pairs of a block and a host block; NULL where there are none."""
    if not len(array):
        return NULL
    if array.nbytes != len(array) * 2 * sizeof(int32_t):
        raise NativeError("swaps must be pairs of 32-bit integers")
    return <const int32_t*>_address(array)


cdef uintptr_t _address(array) except? 0:
    """Where a C-contiguous buffer begins; its owner keeps it alive and in place."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef uintptr_t address = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return address


cdef class ProgramHandle:
    """A program on a device of the C ABI."""

    cdef const di_device_api* api
    cdef void* program
    cdef DeviceHandle device
    cdef int32_t n_weights

    def __cinit__(self, DeviceHandle device not None, slots, instrs, weights, int n_body, int n_tail, tuple kv, int kv_dtype,
                  int64_t arena_bytes, int max_tokens, int tail_rows, int max_seqs, int max_logprobs, int experts_per_token):
        cdef char why[WHY]
        cdef di_program_desc desc
        cdef int status
        if device.device is NULL:
            raise NativeError("the device is closed")
        self.device = device
        self.api = device.api
        why[0] = 0
        memset(&desc, 0, sizeof(desc))
        desc.struct_size = sizeof(di_program_desc)
        desc.n_slots = len(slots)
        desc.n_weights = len(weights)
        desc.n_body = n_body
        desc.n_tail = n_tail
        if len(instrs) != n_body + n_tail:
            raise NativeError("the number of instructions does not match")
        desc.slots = <const di_slot*>_address(slots)
        desc.instrs = <const di_instr*>_address(instrs)
        desc.weights = <const di_weight_desc*>_address(weights)
        if slots.nbytes != len(slots) * sizeof(di_slot) or instrs.nbytes != len(instrs) * sizeof(di_instr) or \
                weights.nbytes != len(weights) * sizeof(di_weight_desc):
            raise NativeError("encoded program does not match the device header")
        desc.kv.layers, desc.kv.heads, desc.kv.head_size, desc.kv.block_tokens, desc.kv.blocks, desc.host_blocks = kv
        desc.kv.dtype = kv_dtype
        desc.arena_bytes = arena_bytes
        desc.max_tokens = max_tokens
        desc.tail_rows = tail_rows
        desc.max_seqs = max_seqs
        desc.max_logprobs = max_logprobs
        desc.experts_per_token = experts_per_token
        self.n_weights = desc.n_weights
        with nogil:
            status = self.api.program_create(device.device, &desc, &self.program, why, WHY)
        if status != 0:
            self.program = NULL
            raise NativeError(why.decode("utf-8", "replace") or f"program refused with code {status}")

    cdef void* alive(self) except NULL:
        if self.program is NULL:
            raise NativeError("the program is closed")
        if self.device.device is NULL:
            raise NativeError("the program's device is closed")
        return self.program

    def write_rows(self, int weight, int row0, const uint64_t[::1] addresses, int source):
        """Fill rows from the addresses of their first elements (0: a row of zeros); the caller keeps the memory alive."""
        cdef char why[WHY]
        cdef int status
        cdef int32_t rows = <int32_t>addresses.shape[0]
        cdef void* program = self.alive()
        cdef const void** data = <const void**>&addresses[0]
        why[0] = 0
        with nogil:
            status = self.api.weight_write(program, weight, row0, rows, data, <uint8_t>source, why, WHY)
        if status != 0:
            raise NativeError(why.decode("utf-8", "replace") or f"weight {weight}: code {status}")

    def write_codes(self, int weight, int row0, const uint64_t[::1] codes, const uint64_t[::1] scales, const uint64_t[::1] zeros):
        """Fill rows of a quantized weight from the addresses of their codes (0: zeros), scales and zero points."""
        cdef char why[WHY]
        cdef int status
        cdef int32_t rows = <int32_t>codes.shape[0]
        cdef void* program = self.alive()
        if scales.shape[0] != rows or zeros.shape[0] != rows:
            raise NativeError("one address of scales and zero points a row")
        why[0] = 0
        with nogil:
            status = self.api.weight_write_codes(
                program, weight, row0, rows, <const uint8_t**>&codes[0], <const float**>&scales[0], <const int16_t**>&zeros[0], why, WHY
            )
        if status != 0:
            raise NativeError(why.decode("utf-8", "replace") or f"weight {weight}: code {status}")

    def submit(self, StepBinding binding not None, owner):
        """Run or start a step; returns its ticket."""
        cdef char why[WHY]
        cdef int status
        cdef uint64_t ticket = 0
        cdef void* program = self.alive()
        cdef di_step* step = binding.refresh(owner)
        why[0] = 0
        with nogil:
            status = self.api.submit(program, step, &ticket, why, WHY)
        if status != 0:
            raise NativeError(why.decode("utf-8", "replace") or f"step failed with code {status}")
        return ticket

    def wait(self, uint64_t ticket):
        """Block until a ticket's step is done."""
        cdef char why[WHY]
        cdef int status
        cdef void* program = self.alive()
        why[0] = 0
        with nogil:
            status = self.api.wait(program, ticket, why, WHY)
        if status != 0:
            raise NativeError(why.decode("utf-8", "replace") or f"step failed with code {status}")

    def kv_block_bytes(self):
        """Bytes of one KV block over all layers."""
        return self.api.kv_block_bytes(self.alive())

    def kv_move(self, bint to_host, blocks, buffers):
        """Copy blocks to or from writable buffers of kv_block_bytes() each."""
        cdef int n = len(blocks)
        cdef int64_t size = self.kv_block_bytes()
        cdef void* program = self.alive()
        cdef uint8_t[::1] writable
        cdef const uint8_t[::1] readable
        cdef uint64_t ticket = 0
        cdef int32_t* ids = <int32_t*>malloc(sizeof(int32_t) * max(n, 1))
        cdef void** data = <void**>malloc(sizeof(void*) * max(n, 1))
        cdef int i, status
        try:
            if ids is NULL or data is NULL:
                raise MemoryError
            if len(buffers) != n:
                raise NativeError("one buffer a block")
            for i in range(n):
                ids[i] = blocks[i]
                if to_host:
                    writable = buffers[i]
                    if writable.shape[0] != size:
                        raise NativeError("a buffer has the wrong size")
                    data[i] = &writable[0]
                else:
                    readable = buffers[i]
                    if readable.shape[0] != size:
                        raise NativeError("a buffer has the wrong size")
                    data[i] = <void*>&readable[0]
            with nogil:
                status = self.api.kv_move(program, to_host, n, ids, data, &ticket)
                if status == 0 and ticket != 0:
                    status = self.api.wait(program, ticket, NULL, 0)
            if status != 0:
                raise NativeError(f"moving KV blocks failed with code {status}")
        finally:
            free(ids)
            free(data)

    def stats(self):
        """Bytes and times as a dict; `op_ns` is a list by operation code."""
        cdef di_stats out
        memset(&out, 0, sizeof(out))
        out.struct_size = sizeof(di_stats)
        self.api.stats(self.alive(), &out)
        return {
            "weight_bytes": out.weight_bytes,
            "kv_bytes": out.kv_bytes,
            "arena_bytes": out.arena_bytes,
            "last_step_ns": out.last_step_ns,
            "op_ns": [out.op_ns[i] for i in range(32)],
        }

    def profile(self, bint on):
        """Measure each operation from now on."""
        self.api.profile(self.alive(), on)

    def slot_write(self, int slot, int rows, const float[::1] data):
        """Test access: set an activation from row-major fp32."""
        if self.api.slot_write(self.alive(), slot, rows, &data[0]) != 0:
            raise NativeError(f"slot {slot} cannot take {rows} rows")

    def slot_read(self, int slot, int rows, float[::1] data):
        """Test access: an activation as row-major fp32."""
        if self.api.slot_read(self.alive(), slot, rows, &data[0]) != 0:
            raise NativeError(f"slot {slot} has no {rows} rows")

    def close(self):
        """Give weights, KV pool and activations back."""
        cdef void* program = self.program
        self.program = NULL
        if program is not NULL:
            with nogil:
                self.api.program_free(program)

    def __dealloc__(self):
        if self.program is not NULL:
            self.api.program_free(self.program)


cdef class Machine:
    """The benchmark's probes: read bandwidth and matrix peak of this machine, with a thread team like the engine's."""

    cdef MachineProbe* probe

    def __cinit__(self, int threads=0, isa=None):
        cdef char why[WHY]
        cdef bytes isa_bytes = isa.encode() if isa else b""
        cdef const char* name = <const char*>isa_bytes if isa else NULL
        why[0] = 0
        with nogil:
            self.probe = MachineProbe.create(name, threads, why, WHY)
        if self.probe is NULL:
            raise NativeError(why.decode("utf-8", "replace"))

    def map(self, size_t size):
        """Touch `size` bytes of 2 MB pages for the read measurements."""
        cdef bint ok
        with nogil:
            ok = self.probe.map(size)
        if not ok:
            raise MemoryError(f"cannot map {size} bytes")

    def read_bandwidth(self):
        """One pass over the mapped memory by all threads, in bytes per second."""
        cdef double rate
        with nogil:
            rate = self.probe.read_bandwidth()
        return rate

    def matrix_peak(self, int64_t rounds=1000000):
        """Register-only matrix products on all threads, in floating-point operations per second; 0 without a matrix unit."""
        cdef double rate
        with nogil:
            rate = self.probe.matrix_peak(rounds)
        return rate

    def __dealloc__(self):
        del self.probe


def tiers():
    """Each tier of this build, best first, as (name, runs here, missing processor features)."""
    cdef char text[2048]
    describe_tiers(text, 2048)
    rows = [line.split("|") for line in text.decode().splitlines()]
    return [(name, missing == "", missing) for name, missing in rows]


def cpu():
    """Vendor, model, features and caches of the processor as a dict of strings."""
    cdef char text[2048]
    describe_cpu(text, 2048)
    return dict(line.split("=", 1) for line in text.decode("utf-8", "replace").splitlines())


def memory():
    """Resident bytes of this process: (now, at most)."""
    return resident_bytes(), peak_resident_bytes()


def default_threads():
    """Physical cores within affinity and cgroup quota."""
    return usable_cpus()
