// Package virtq is the device's side of a virtqueue: it takes chains of descriptors that the driver
// made available and returns used elements (virtio 1.2, 2.7 "Split Virtqueues").
//
// A Split belongs to one goroutine. The driver, in another process, writes the descriptor table and
// the available ring at any time; this side writes the used ring. So every field of the driver's is
// read once, copied, checked, and the copy is used; the cursors that decide anything are private to
// the Split and never read back from the ring. An error that correct drivers cannot cause by timing
// (an index that jumped, a loop, an address outside memory) breaks the queue for good: it returns
// ErrBroken and does not touch the ring any more.
//
// The order of a request's steps is Next, Load, the work, Push, and one Publish per batch. split.go
// states beside each access who writes the word and which barrier orders it.
//
// With an in-flight region, a queue records requests in flight for its successor (inflight.go). The
// comment of tracker argues why the process may be killed between any two stores, and a test steps
// through it an instruction at a time (COWBLK_STEP_ROUNDS=N: N rounds on each ring).
//
// unsafe is confined to internal/word.
package virtq
