// Package qmp reaches out to the guest and its QEMU around a promotion: it freezes the
// guest's file systems through the guest agent or pauses its processors through QEMU's
// monitor, undoes that whatever happens in between, and reports QEMU's events.
//
// A [Quiescer] is one way to make a guest hold still:
//
//   - [Agent] speaks the guest agent's dialect on a UNIX socket (the host side of a
//     virtio-serial port) or AF_VSOCK;
//   - [Pause] sends stop and cont to whatever runs QMP commands: a [Monitor], or with
//     [GoQEMU] any of go-qemu's monitors;
//   - [LibvirtFreeze] and [LibvirtPause] do the same next to libvirt's own monitor.
//
// [Around] is the only place that pairs the two halves. Everything here waits on other
// programs; nothing here is called from a goroutine that serves a virtqueue, and every
// wait has a deadline.
//
// Monitor does not stand on go-qemu's SocketMonitor, though it uses its types: that one
// hands out replies from the buffer into which it receives the next event, stops
// reading commands' replies while nobody takes an event, ends the connection at a line
// of 64 KiB, drops error classes, and knows neither deadlines nor reconnection. QEMU
// serves one client per monitor, so its events cannot be kept on another connection.
//
// # Goroutines
//
//   - Each Monitor has one, which connects, reads and connects again; it ends in
//     [Monitor.Close].
//   - Dialling a vsock address and each call to libvirt use one until the call returns.
package qmp
