// Package sandbox irrevocably removes privileges that this process no longer needs, to limit what a
// guest gains from a vulnerability.
//
// [Confine] uses landlock(7) and no_new_privs on all present and future threads of the process
// (through psx, or by the kernel from Linux 7.0 on):
//
//	resource                          allowed afterwards                            from Linux
//	programs                          none is executed, no privilege is gained      5.19
//	files and directories             those of [Rules]: read, written, made,
//	                                  removed, renamed as each rule says            5.19
//	truncating files                  likewise; before, any file of this user       6.2
//	connecting to TCP ports           none; before, any                             6.7
//	ioctls on devices                 those of Rules.Read and Write                 6.10
//	signals, abstract UNIX sockets    among processes confined together; before,
//	                                  as permissions allow                          6.12
//	ptrace and similar                among processes confined together             5.19
//
// The landlock of Linux 5.13 to 5.18 forbids renaming a file from one directory to another, which a
// store needs. On these kernels, and without landlock, Confine only sets no_new_privs, or returns
// [ErrUnsupported] if confinement is required.
//
// # What stays possible
//
// Open descriptors keep all their rights: the files of the disks, the sockets, guest memory, and
// descriptors received through them. Landlock does not restrict stat, changing mode, owner and
// times of the user's own files, UDP, vsock, Multipath TCP, or listening. Connecting to UNIX
// sockets in the file system stays possible, although landlock can deny it from Linux 7.1 on:
// promotions connect to monitors, agents and libvirt whose addresses arrive over the control
// socket.
package sandbox
