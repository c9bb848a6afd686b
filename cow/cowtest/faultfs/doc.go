// Package faultfs is a machine in memory whose files fail and whose power can be cut.
//
// A Machine has what a kernel has: the content of files and directories as every process sees it,
// and behind it a Device that knows which part of it would survive a power cut. Processes of the
// machine are vfs.SharedFS. They can be killed, which keeps the content, including mapped memory,
// and drops locks and open files.
//
// # What a power cut leaves
//
// Every change of files is recorded, in order, on the machine's Tape. A write, punch or change of
// length belongs to its file and is certain once the file was synced. Creating, renaming or
// removing a name belongs to its directories and is certain once one of them was synced. A power
// cut keeps any choice (Choice) of the uncertain changes: any subset, which includes any order; of
// a write any of its sectors of 512 bytes; of a write or change of length that moves the end of the
// file the new length without the data, or the data without the new length. Two rules limit the
// choice. Later contents of a sector replace earlier ones, never the other way round. A rename is
// atomic, and changes of one name keep their order, as in every file system with a journal.
//
// Mapped memory is lost: another run of the machine has begun, as SharedFS.Boot says.
//
// A file system can also be lost alone and be mounted again in the same run of the machine
// (Remount): the files below MemoryDir are on another file system and stay as they are.
//
// A file without a name is gone, so a file that was written and synced in a directory that was not
// synced may be missing.
//
// # What fails
//
// A Hook is called before every call, including reads and opens. It may block, so that a test
// determines the order of concurrent calls. It may return a Fault: an error, with or without part
// of the effect, or a short transfer. A failed sync says how much of the unsynced content has
// reached the device nevertheless. The rest is lost but stays readable, as in Linux, where the
// pages are clean afterwards: the next sync succeeds and proves nothing.
//
// An FS, or a SharedFS, has a Hook on the calls to another file system, such as that of the host. A
// hook on these may also corrupt what is read. KillFS, one of these, kills its user at its n-th
// change.
//
// SetFreePages limits the free space of the file system. Flip inverts single bits.
package faultfs
