package aio

// Names and layouts of the kernel, from include/uapi/linux/io_uring.h: those that the engine uses.

// struct io_uring_sqe.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32 // rw_flags, cancel_flags, statx_flags
	userData uint64
	_        [3]uint64
}

// struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// struct io_sqring_offsets.
type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
	_                                                           uint64
}

// struct io_cqring_offsets.
type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
	_                                                           uint64
}

// struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sqOff                                                                  sqOffsets
	cqOff                                                                  cqOffsets
}

const (
	opReadv       = 1
	opWritev      = 2
	opAsyncCancel = 14
	opStatx       = 21 // Linux 5.6

	sqeAsync = 1 << 4 // IOSQE_ASYNC

	setupDisabled     = 1 << 6  // IORING_SETUP_R_DISABLED, Linux 5.10
	setupSubmitAll    = 1 << 7  // IORING_SETUP_SUBMIT_ALL, 5.18
	setupCoopTaskrun  = 1 << 8  // IORING_SETUP_COOP_TASKRUN, 5.19
	setupTaskrunFlag  = 1 << 9  // IORING_SETUP_TASKRUN_FLAG, 5.19
	setupSingleIssuer = 1 << 12 // IORING_SETUP_SINGLE_ISSUER, 6.0
	setupDeferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN, 6.1
	setupNoSQArray    = 1 << 16 // IORING_SETUP_NO_SQARRAY, 6.6

	featSingleMmap   = 1 << 0 // IORING_FEAT_SINGLE_MMAP
	featNoDrop       = 1 << 1 // IORING_FEAT_NODROP
	featSubmitStable = 1 << 2 // IORING_FEAT_SUBMIT_STABLE

	sqTaskrun         = 1 << 2 // IORING_SQ_TASKRUN
	cqEventFDDisabled = 1 << 0 // IORING_CQ_EVENTFD_DISABLED

	enterGetEvents = 1 << 0 // IORING_ENTER_GETEVENTS

	registerEventFD     = 4  // IORING_REGISTER_EVENTFD
	registerEnableRings = 12 // IORING_REGISTER_ENABLE_RINGS

	cancelAll = 1 << 0 // IORING_ASYNC_CANCEL_ALL, 5.19
	cancelAny = 1 << 2 // IORING_ASYNC_CANCEL_ANY, 5.19

	offRings = 0          // IORING_OFF_SQ_RING; the CQ ring is in the same mapping
	offSQEs  = 0x10000000 // IORING_OFF_SQES
)
