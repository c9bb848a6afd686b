// Package faultfs is a machine in memory whose files lose power and fail.
//
// A Machine has what a kernel has: the content of files and directories as
// every process sees it, and behind it a Device that knows which part of that
// would survive. Processes of the machine are vfs.SharedFS; they can be killed,
// which leaves the content, mapped memory included, and drops locks and open files.
//
// # What a power cut leaves
//
// Everything that changes files is recorded, in order, on the machine's Tape: a
// write, punch or change of length belongs to its file and is certain to survive
// once the file has been synced; the making, renaming or removing of a name
// belongs to its directories and is certain once one of them has been synced.
// Of what is not certain a cut keeps any choice (Choice): any subset, which makes
// any order; of a write any of its sectors of 512 bytes; of a write or change of
// length that moves the end of the file the new length without the data, or the
// data without the new length. Two rules bind the choice. Later contents of a
// sector replace earlier ones, never the other way round. A rename happens as a
// whole, and changes of one name keep their order: what every file system with a
// journal gives.
//
// Nothing is left of mapped memory: another run of the machine has begun, which
// SharedFS.Boot tells.
//
// A file system can also be lost alone, and be mounted again in the same run of the
// machine (Remount): the files below MemoryDir are on another one, and stay as they
// are.
//
// A file without a name is gone, so a file that was written and synced in a
// directory that was not may be missing.
//
// # What fails
//
// A Hook sees every call, reads and opens included, before it is carried out. It
// may wait, which is how a test decides about the order of concurrent calls, and
// answer with a Fault: an error, with or without part of the effect, or a short
// transfer. A sync that fails says what of the unsynced content has reached the
// device nevertheless. The rest is lost but stays readable, as in Linux, where the
// pages are clean afterwards: the next sync succeeds and proves nothing.
//
// SetRoom makes the file system small, or full: see there. Flip turns single bits over.
package faultfs
