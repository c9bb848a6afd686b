package backend

import (
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
)

// Kinds of descriptors that a hostile front-end sends.
const (
	kindMemory = iota // the first region
	kindMemory2
	kindEvent
	kindEvent2
	kindSmall // a memfd of one page
	kindInflight
	kindPipeIn
	kindPipeOut
	kindNull
	kindFile // a regular file of a disk
	kindDirectory
	kindSocket
	kindEpoll
	kindReadOnly // the first region, for reading only
	kinds
)

// streamRig sends streams of messages, each over a connection of its own, to a device beside a
// healthy disk.
type streamRig struct {
	*attacker // its memory and descriptors; it holds no connection between two executions
	fds       [kinds]int
	inflight  []byte // what kindInflight holds
}

func newStreamRig(t testing.TB) *streamRig {
	r := &streamRig{attacker: newAttacker(t, newTarget(t, targetDisk, DeviceOptions{Queues: 4}))}
	test.Must(t, r.leave())
	var pipe [2]int
	test.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	test.Must(t, err)
	open := func(name string, flag int) int {
		fd, err := unix.Open(name, flag|unix.O_CLOEXEC, 0o600)
		test.Must(t, err)
		return fd
	}
	memory := func(size int64) int {
		fd, err := unix.MemfdCreate("hostile", unix.MFD_CLOEXEC)
		test.Must(t, err)
		test.Must(t, unix.Ftruncate(fd, size))
		return fd
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	test.Must(t, err)
	r.fds = [kinds]int{
		kindMemory: r.mem.FDs()[0], kindMemory2: r.mem.FDs()[1], kindEvent: r.kick,
		kindEvent2: r.call,
		kindSmall:  memory(4096), kindInflight: memory(inflightSize), kindPipeIn: pipe[0],
		kindPipeOut: pipe[1],
		kindNull:    open("/dev/null", unix.O_RDWR), kindFile: open(r.to.data+".other",
			unix.O_RDWR|unix.O_CREAT),
		kindDirectory: open(t.TempDir(), unix.O_RDONLY), kindSocket: pair[0], kindEpoll: epoll,
		kindReadOnly: open(fdPath(r.mem.FDs()[0]), unix.O_RDONLY),
	}
	test.Must(t, unix.Ftruncate(r.fds[kindFile], atkRegion))
	r.inflight, err = unix.Mmap(r.fds[kindInflight], 0, inflightSize,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	test.Must(t, err)
	t.Cleanup(func() {
		test.Must(t, unix.Munmap(r.inflight))
		unix.Close(pair[1])
		for _, fd := range r.fds[kindSmall:] {
			unix.Close(fd)
		}
	})
	return r
}

// inflightSize is room for four rings of atkNum descriptors, bytes.
const inflightSize = 8192

// message is one message of a stream before it is spoiled.
type message struct {
	request vhost.Request
	payload []byte
	fds     []byte // kinds
}

// steps are what a stream is made of: the messages of a sound session with one ring, in order
// (sound says how many), then others.
func (r *streamRig) steps() (all []message, sound int) {
	regions := r.mem.Regions()
	index := func(i, n uint32) []byte { return vringState(i, n) }
	conf := vhost.ConfigSpace{Size: 60, Data: make([]byte, 60)}.Append(nil)
	wce := vhost.ConfigSpace{Offset: blk.WritebackOffset, Size: 1, Data: []byte{0}}.Append(nil)
	inflight := vhost.Inflight{Size: inflightSize, Queues: 4, QueueSize: atkNum}.Append(nil)
	all = []message{
		{vhost.GetFeatures, nil, nil},
		{vhost.GetProtocolFeatures, nil, nil},
		{vhost.SetProtocolFeatures, u64(vhost.ProtocolFeatures), nil},
		{vhost.SetOwner, nil, nil},
		{vhost.SetFeatures, u64(r.to.dev.Features() | vhost.FeatureProtocolFeatures), nil},
		{vhost.SetMemTable, vhost.AppendMemTable(nil, regions), []byte{kindMemory, kindMemory2}},
		{vhost.SetVringNum, index(0, atkNum), nil},
		{vhost.SetVringBase, index(0, 0), nil},
		{vhost.SetVringAddr, r.address(0, r.ring), nil},
		{vhost.SetVringCall, u64(0), []byte{kindEvent2}},
		{vhost.SetVringKick, u64(0), []byte{kindEvent}},
		{vhost.SetVringEnable, index(0, 1), nil},
	}
	sound = len(all)
	return append(all,
		message{vhost.GetVringBase, index(0, 0), nil},
		message{vhost.SetVringErr, u64(0), []byte{kindEvent}},
		message{vhost.GetQueueNum, nil, nil},
		message{vhost.GetMaxMemSlots, nil, nil},
		message{vhost.AddMemReg, vhost.AppendMemReg(nil, regions[1]), []byte{kindMemory2}},
		message{vhost.RemMemReg, vhost.AppendMemReg(nil, regions[1]), nil},
		message{vhost.SetMemTable, vhost.AppendMemTable(nil, regions[:1]), []byte{kindMemory}},
		message{vhost.GetConfig, conf, nil},
		message{vhost.SetConfig, wce, nil},
		message{vhost.GetStatus, nil, nil},
		message{vhost.SetStatus, u64(15), nil},
		message{vhost.ResetDevice, nil, nil},
		message{vhost.ResetOwner, nil, nil},
		message{vhost.SetBackendReqFD, nil, []byte{kindSocket}},
		message{vhost.SetVringEnable, index(0, 0), nil},
		message{vhost.GetInflightFD, inflight, nil},
		message{vhost.SetInflightFD, inflight, []byte{kindInflight}},
		message{vhost.SetLogBase, make([]byte, 16), []byte{kindMemory}},
		message{vhost.SetLogFD, nil, []byte{kindEvent}},
		message{vhost.SetVringKick, u64(vhost.VringNoFD), nil},
		message{vhost.SetVringNum, index(1, 8), nil},
		message{vhost.SetVringAddr, r.address(1, r.ring), nil},
		message{vhost.SetVringKick, u64(1), []byte{kindEvent}},
		message{vhost.SetVringEnable, index(1, 1), nil},
	), sound
}
