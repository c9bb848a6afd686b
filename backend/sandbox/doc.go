// Package sandbox takes away from this process, for good, what it does not need
// any more: a guest that finds a hole in it finds little behind the hole.
//
// [Confine] does it with landlock(7) and no_new_privs, on every thread that the
// process has and will have (psx, or the kernel's own way from Linux 7.0 on):
//
//	what                              allowed afterwards                            from Linux
//	programs                          none is executed, no privilege is gained      5.19
//	files and directories             those of [Rules]: read, written, made,
//	                                  removed, renamed as each rule says            5.19
//	cutting files short               likewise; before, any file of this user's     6.2
//	connecting to TCP ports           none; before, any                             6.7
//	control requests to devices       to those of Rules.Read and Write              6.10
//	signals, abstract UNIX sockets    among processes confined together; before,
//	                                  whatever permissions allow                    6.12
//	ptrace and the like               among processes confined together             5.19
//
// Linux 5.13 to 5.18 have a landlock under which no file can be renamed from one
// directory to another. A store cannot change that way, so there, and where
// landlock is not built in or not among the boot option lsm=, nothing but
// no_new_privs is done, or, if it is required, [ErrUnsupported].
//
// # What stays possible
//
// Descriptors that are open already keep all their rights: the files of the
// disks, the sockets, guest memory. What comes through them later does too. No
// landlock restricts looking at names and sizes (stat), changing modes, owners
// and times of one's own files, UDP, vsock, Multipath TCP, or listening. UNIX
// sockets that lie in the file system can still be connected to, which permits
// can deny from Linux 7.1 on: the monitor, the agent and libvirt, to which a
// promotion reaches out, are named on the control socket while the process runs,
// so they are left alone.
package sandbox
