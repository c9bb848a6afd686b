// Package qmp quiesces a guest for a promotion: it freezes the guest's file systems through the
// guest agent, or pauses its processors through QEMU's monitor, and undoes that in any case. It
// also reports QEMU's events and hot-plugs disks.
//
// A [Quiescer] is one way to quiesce a guest:
//
//   - [Agent] uses the guest agent on a UNIX socket (the host side of a virtio-serial port) or
//     AF_VSOCK;
//   - [Pause] sends stop and cont through a [Monitor] or, with [GoQEMU], any of go-qemu's monitors;
//   - [LibvirtFreeze] and [LibvirtPause] do the same through libvirt.
//
// Only [WhileQuiesced] pairs the two halves. Everything here waits for other programs. So no
// goroutine that serves a virtqueue may call it, and every wait has a deadline.
//
// Monitor uses the types of go-qemu but not its SocketMonitor. SocketMonitor returns replies in the
// buffer that receives the next event, stops reading replies while an event is pending, fails at a
// line of 64 KiB, drops error classes, and has neither deadlines nor reconnection. QEMU serves one
// client per monitor, so events cannot have another connection.
//
// # Goroutines
//
//   - Each Monitor has one, which connects, reads and reconnects until [Monitor.Close].
//   - Dialling a vsock address and each libvirt call use one until the call returns.
package qmp
