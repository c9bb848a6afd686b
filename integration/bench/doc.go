// Command bench measures cowblk beside other programs:
//
//	compare  beside qemu-storage-daemon, fio and memcpy
//	promote  how long requests wait for a promotion, and for a QEMU snapshot
//	reopen   opening after kills, takeovers and writes, beside another cowblk
//	scale    system calls and time in large stores, beside another cowblk
//	bonnie   bonnie++ in guests
//
// "bench NAME -help" lists the options. The packages of these names describe their methods.
package main
