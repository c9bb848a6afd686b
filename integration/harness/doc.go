// Package harness drives real machines for the integration tests and the demo. It builds the shared
// files (artefact.go), runs processes and ends them reliably (process.go), calls the cowblk binary
// from the command line (store.go), runs a vhost-user-blk back-end (backend.go), starts QEMU with
// disks on its sockets (machine.go), and talks to the guest: console and script channel over two
// serial ports (port.go, transcript.go, agent.go), monitor over QMP (monitor.go).
//
// Errors include the end of the failed party's output. The package does not import testing.
//
// Goroutines: one for each process (waits for it), one for each serial port (reads it), one for
// each monitor (keeps the events). Each ends with its process; the owner's Close waits for it.
package harness
