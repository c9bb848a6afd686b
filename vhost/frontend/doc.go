// Package frontend is the other side of vhost-user-blk: a front-end that negotiates, shares memory
// and sets up rings as QEMU does (or as SPDK does), and a virtio-blk driver for each ring. It runs
// in the process that uses it and works with any vhost-user-blk back-end; tests, fuzzing and
// benchmarks use it instead of a virtual machine.
//
// A [Frontend] is one connection. [Dial] brings it to the point where a guest's driver has just
// written DRIVER_OK. Stop and Cont do what QEMU does for its commands of these names, Reset what it
// does at system_reset, and Reconnect what it does when another back-end listens after the first
// one died. Send, SendRaw and Receive exchange messages that a correct front-end does not send.
//
// A [Driver] is one ring, for one goroutine. It has slots: a header, a status byte and a buffer
// that are laid out once, so that Submit, Kick and Poll allocate nothing. ReadAt, WriteAt, Flush
// and the like are one request at a time on a free slot. SubmitChain takes any chain of
// descriptors, and [Ring] writes the ring itself, for deliberately incorrect drivers.
//
// # Memory
//
// One memfd is divided into regions that are adjacent in guest addresses and in the file, so that
// buffers can cross a boundary, but far apart in user addresses, so that a confusion of the two is
// detected. The rings are in the first region, followed by slots and by the heap of Alloc.
//
// # Goroutines
//
// None. A Frontend is for one goroutine, each of its Drivers for one, which may be another.
package frontend
