// Package guest holds the memory that a vhost-user front-end shares with us:
// the table of regions, their mappings, and the translation of guest physical
// addresses (descriptors) and front-end virtual addresses (rings) to byte
// slices that alias guest memory.
//
// A Table never changes. Adding or removing a region makes a new Table that
// shares the mappings of the old one, and both the table and each mapping are
// counted, so a request keeps the memory it was parsed with mapped until it
// releases the table. Lookups take no lock and write nothing: many queues
// translate through the same table without sharing a dirty cache line.
//
// Guest memory is written by the guest at any time. Code that reads a field
// from it copies the field once, checks the copy and uses the copy.
//
// The front-end can also shrink the file behind a region while we use it; an
// access from Go beyond the new end then raises SIGBUS. The size is checked
// when the region is mapped, which is all this package can do: whoever touches
// the slices runs under debug.SetPanicOnFault and recovers. System calls given
// such a slice return EFAULT instead.
package guest
