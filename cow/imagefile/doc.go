// Package imagefile reads the files of disk images that users have: it recognizes their format,
// refuses with advice what cannot become a disk, reads a qcow2 with its backing files as one
// content (Source), copies that with holes, and computes its digest. It knows nothing of a store.
// qcow2 itself is read by package qcow2.
//
//	formats.go        what a file is, by its content, and what converts it
//	format_probes.go  formats that no fixed text proves
//	raw.go            files that a disk or a guest uses as they are
//	unused_data.go    does a file hold something that must not be overwritten?
//	source.go         the content of an image: Open, ReadAt, next extent
//	backing.go        the chain of backing files
//	copy.go           copy, read back and compare
//	digest.go         chunks of data between holes, their digest
//	state.go          has the file changed since? does the system use the device?
//
// It starts no goroutines.
package imagefile
