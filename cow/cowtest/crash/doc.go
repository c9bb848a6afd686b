// Package crash cuts the power under whole stores and looks at what is left.
//
// # A life
//
// A Life carries a script out (Step) on a faultfs.Machine: it creates, serves,
// promotes, rolls back and removes disks through package store and package cow as
// the programs do, and submits guests' requests, overlapping in time if Depth says
// so. All goroutines of that process run in a testing/synctest bubble, and each of
// their calls on files waits for its turn: a seed decides whose is next. So the
// same seed gives the same order of everything, and any order can be had.
//
// The machine's tape records what happens, and between it the player's notes: a
// write begins, a flush has succeeded, a promotion swaps.
//
// # A cut
//
// Examine plays a tape again, record by record, and after each of them, or after
// random ones, cuts the power: it makes images of what may be left (faultfs.Choice)
// and opens every disk and tag of each through the real open path.
//
// The Oracle follows the notes. For each sector it knows the writes that may be its
// content: all that have begun, less those that ended before another began whose
// durability was acknowledged. For the store it knows the state, or the two states,
// it may be in: before and after the change under way. A tag holds what its disk
// held at the swap; from the moment its layer is sealed, exactly what was read from
// it then. What is left must fit one of the states in everything, and nothing
// half-made may stay once the next command has cleaned up. Of some images, and of all
// machines that were killed or have lost their file system, a copy is taken to pieces:
// its disks are removed one by one, beginning with any, and what is left must stay what
// it is, until no layer is there.
//
// A death of the process alone takes nothing away: every disk is read when it is
// opened, and must show what has completed, flushed or not. What the next process
// finds so it must be able to make durable, which the cuts after it show.
//
// # Other ways to end
//
// What processes have stored in mapped memory is not on the tape, so the player notes
// copies of the whole machine at random moments (Exam.Moments). There the process is
// killed, and nothing else: all that has completed must be there. And the file system is
// lost and mounted again in the same run of the machine, while memory stays: the oracle
// asks the same as after a power cut. A life of a Chain ends for the next one by a cut,
// by such a remount, or by a reboot before which everything pending has reached the
// disk, after an orderly close of all disks or a mere kill.
//
// # Who else is there
//
// Random scripts have, besides the guest: readers in other processes, which keep former
// heads from being sealed and outlive the server (hold, release), or look at a disk
// between two servers (peek); kills within an open, a close, a hand-over or a change of
// the store (kill N), and between the swap of a promotion and its end (kill swapped);
// opens of which one call fails (open-fault), changes of the store of which one call
// fails (fault); a file system without space, the store's or the one in memory (full);
// a program of a version before shared maps (older); changes by one that knows no
// index of manifests (version); disks that are left for a process
// that does not come at once (detach); time for background flushes (sleep).
//
// There are imports of a raw file and of one to three qcow2 files on one another
// (import); removals of images, which are refused while a disk lies on them (remove);
// stops in order, which are no kills (stop); manifests that are damaged, also of a served
// disk, and disks that are removed as damaged or whose manifest is put back (damage,
// remove-damaged, mend); a base that somebody else has locked (lock-base, open NAME
// share); a file system with little room or none (room), on which the reserve of the
// store is used up, and made again later, and what README.md promises is to be had.
//
// An error is taken if the script has made a call fail that explains it; what had completed must be
// there after it all the same, unless it was a sync that failed. TestRandom prints how
// often each has happened.
//
// The disks are too small for the pages of a shared map to be given back:
// TestReleaseBesideAdd of package layer does that.
//
// # What is tried
//
//   - TestEveryBoundary: scenarios of every operation, cut after every record.
//   - TestKilledThenServedThenCut: operations killed half-way, served on by another
//     process, then cut.
//   - TestRandom: Chains of random lives, each beginning with what a cut has left. A
//     failure is minimised to a short script.
//   - TestRefusedOpen: a script goes on without what a kill has prevented.
//   - TestEveryCallFails: every call on a file fails once, in every way.
//   - TestBitFlips, TestJunk: damage to every file.
//
// The tests have a short form, which always runs, and a long one: COWBLK_CRASH_CUTS
// is the number of random cuts (make crash: a million) and has everything else tried
// without gaps. COWBLK_CRASH_SEED repeats a run of TestRandom.
package crash
