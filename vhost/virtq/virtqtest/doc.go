// Package virtqtest is the driver's side of a virtqueue, for tests, fuzzing
// and benchmarks: guest memory backed by memfds, and a split ring that a test
// drives either properly (Driver: free descriptors, chains, notifications) or
// field by field, to write what no sound driver would (Ring).
//
// The memory is mapped here a second time, apart from the device's own
// mapping, just as in a virtual machine.
package virtqtest
