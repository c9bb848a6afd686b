// Package qcow2 reads qcow2 images of versions 2 and 3 (QEMU, docs/interop/qcow2.txt): which bytes
// of the disk an image holds itself, and these bytes. It opens no files: the caller opens the image
// and the backing file that Header.Backing names, and reads from the latter what the image does not
// hold.
//
// The image is not trusted. Each field is checked before it is used, each table is read in pieces
// of bounded size, and everything that a table points to must lie in the file. The time depends on
// the tables, not on the size of the disk: a missing L2 table is skipped in one step, and
// clusters at holes of the file, as preallocation makes them, are zeros that are not read.
//
// Refcounts, internal snapshots and bitmaps are not read, except for their fields in the header:
// the disk's present content does not need them.
package qcow2
