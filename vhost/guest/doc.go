// Package guest holds the memory that a vhost-user front-end shares with this process: the table of
// regions, their mappings, and the translation of guest physical addresses (descriptors) and
// front-end virtual addresses (rings) to byte slices that alias guest memory.
//
// A Table never changes. Adding or removing a region makes a new Table that shares the mappings of
// the old one. The table and each mapping are reference-counted, so a request keeps the memory it
// was parsed with mapped until it releases the table. Lookups take no lock and write nothing: many
// queues translate through the same table without sharing a dirty cache line.
//
// The guest writes its memory at any time. Code that reads a field from it copies the field once,
// checks the copy and uses the copy.
//
// The front-end can also truncate the file behind a region while it is mapped; an access from Go
// beyond the new end then raises SIGBUS. This package can only check the size when it maps the
// region. Code that accesses the slices must run under debug.SetPanicOnFault and recover. System
// calls given such a slice return EFAULT instead.
package guest
