// Package harness drives real machines for the integration tests and the demo:
// it builds what they share (artefact.go), runs processes it can always end
// (process.go), calls the cowblk binary the way a person does (store.go), keeps
// a vhost-user-blk back-end serving (backend.go), starts QEMU with disks on
// such sockets (machine.go), and talks to the guest: console and script channel
// over two serial ports (port.go, transcript.go, agent.go), monitor over QMP (monitor.go).
//
// Everything returns errors that carry the tail of what the failing party
// printed, so that a test need not look for it, and nothing here knows package
// testing.
//
// Goroutines: one per process (waits for it), one per serial port (reads it),
// one per monitor (keeps the events). Each ends when its process does; Close of
// the owner waits for it.
package harness
