// Package backendtest has the disks, guests and sockets that the tests of backend and
// backend/daemon share.
//
// # Goroutines
//
//   - [Serve] has one that accepts front-ends and serves them one after another, until stop.
//   - [NewGuest] has one for the guest agent and one for QEMU's monitor, until the test ends.
package backendtest
