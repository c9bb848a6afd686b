// Package qcow2 reads qcow2 images of versions 2 and 3 (QEMU, docs/interop/qcow2.txt): which bytes of the disk an
// image holds itself, and these bytes. It opens no files: whoever uses it opens the image, and the backing file that
// Header.Backing names, and asks the one below for what an image does not hold.
//
// The image is not trusted. Each field is checked before it is used, each table is read in pieces of bounded size, and
// what a table points to must lie in the file. Time follows what the tables say, not the size of the disk: an L2 table
// that is not there is passed over in one step.
//
// Refcounts, internal snapshots and bitmaps are not looked at, but for their fields in the header: the disk's present content does not need them.
package qcow2
