// Command cowblk serves stacks of copy-on-write layers to QEMU over vhost-user-blk, and manages them by name.
//
// One file per sub-command. A sub-command parses and prints; what it does is in cow/store and backend. The only exit
// of the process is in main; everything else returns an error, which exit.go turns into a documented exit code.
//
// COWBLK_KILL_CYCLES=2000 makes the test of a process that is killed under load kill that often, in some minutes.
//
// # Others' faults
//
// What a serving process does when something that it depends on fails, and the test that shows it:
//
//	fault                                    what happens                                                     shown by
//	disk answers after seconds, to a write   its queue waits; other queues, disks and questions do not        backend TestSlowDiskHoldsUpItsQueueOnly
//	... to a sync                            flushes wait; reads and writes of the same queue do not          backend TestSlowSyncHoldsUpFlushesOnly
//	... during a promotion                   the cut waits for nothing, sealing does                          backend TestPromotionOfASlowDisk
//	... when told to end                     the process ends with the last request, or at once if told twice TestStopWhileADiskDoesNotAnswer
//	... the store, during a promotion        the promotion waits, the guest does not                          TestPromotionWhileTheStoreDoesNotAnswer
//	QEMU's monitor or the agent hangs        the promotion ends at its time limit, whole or not at all; the   TestGuestHangsDuringPromotion
//	                                         guest is let go as soon as the peer answers (for two minutes;
//	                                         then by the next process)
//	... when told to end                     the process ends within that limit, the next one lets go         TestStopWhileTheAgentHangs
//	... cannot be reached at all             the promotion is refused at once, and no record is left          TestUnreachableGuestLeavesNoRecord
//	... has ended, or runs anew, since       the record of it goes by itself                                  TestRecordOfEndedGuestGoes
//	"cowblk run" or its QEMU is killed       the other one ends                                               TestRunTakesQEMUWithIt, TestQEMUTakesRunWithIt
//	standard output is lost                  the command fails, whatever it has done                          TestLostOutput
//	QEMU's monitor is mad                    bounded in memory and log; disks are served and promoted         TestOddMonitors
//	the clock is set                         nothing waits by it; at worst one tag too many                   backend TestHooksWhenTheClockIsSet, integration/lint
//	no file descriptors left                 a promotion is refused before it begins; front-ends wait or are  TestOutOfDescriptors
//	                                         sent away, and served when there are some again
//	more layers than descriptors             refused with what to do, nothing changed                         TestMoreLayersThanDescriptors
//	file system full or nearly so            what makes something fails whole and leaves nothing; the guest   TestStoreOnAFullFileSystem
//	                                         reads, overwrites and flushes
//	a sealed layer's data rots               reading it is an error with an event, never wrong data; a write   TestDamagedDataIsNeverServed
//	                                         of the whole block mends it for that disk
//	many processes for one disk              one serves, whatever name the store has; a killed one's disk is  TestManyStartsOfOneDisk, TestTwoStoresOneLayer
//	                                         free at once
//	store removed, moved or replaced         the guest goes on with open files; promotions are refused whole  TestStoreRemovedUnderneath
//	foreign code runs in the process         it reaches the store's files, executes nothing (--sandbox)       TestServeConfined, backend/sandbox
//
// A store that was removed under a running disk is in open files alone: put nothing in its place, copy the disk from
// within the guest to another one ("cowblk attach" adds it), and only then end the process.
package main
