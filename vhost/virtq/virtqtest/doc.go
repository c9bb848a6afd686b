// Package virtqtest is the driver's side of a virtqueue, for tests, fuzzing and benchmarks: guest
// memory backed by memfds, and a split ring that a test drives either correctly (Driver: free
// descriptors, chains, notifications) or field by field, with any values (Ring).
//
// The memory is mapped here a second time, apart from the device's own mapping, as in a virtual
// machine.
package virtqtest
