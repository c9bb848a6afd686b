// Package virtq is the device's side of a virtqueue: it takes chains of
// descriptors that the driver made available and gives back used elements
// (virtio 1.2, 2.7 "Split Virtqueues").
//
// A Split belongs to one goroutine. The driver, in another process, writes the
// descriptor table and the available ring at any time; we write the used ring.
// So every field of the driver's is read once, copied, checked, and the copy
// is used; the cursors that decide anything are private to the Split and never
// read back from the ring. What cannot be a driver's honest mistake of timing
// (an index that jumped, a loop, an address outside memory) breaks the queue
// for good: ErrBroken, and the queue touches the ring no more.
//
// The order of a request's steps is Next, Load, the work, Push, and one
// Publish per batch. Which word is written by whom, and which barrier orders
// it, is argued beside each access in split.go and notify.go.
//
// With a region to keep it in, a queue tells its successor what is in flight:
// inflight.go argues why it may be killed between any two stores, and a test
// steps through it an instruction at a time (COWBLK_STEP_ROUNDS=N: N rounds on
// each ring).
//
// unsafe is confined to internal/word.
package virtq
