package cow_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/internal/test"
)

// The tests in this file block one call and let others overtake it. Each fails when the rule in its
// comment is taken out of the engine.

// A write overwrites a block of the old head while a promotion happens and another write, on the
// new view, copies up the rest of that block. The first must not be lost: it is acknowledged.
// (Rule: waitOldWriters.)
func TestCopyUpAfterPromotionWaitsForOldOverwrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		write(t, rig.Disk, 'a', 0, 4096) // the old head owns block 0

		hold := setTrap(t, x, "write", "0000.data")
		old := startWrite(rig.Disk, 'o', 0, 512)
		<-hold.caught // on the old view, past every check
		p := promote(t, rig)
		newer := startWrite(rig.Disk, 'n', 1024, 512)
		if newer.Ends() {
			t.Error("the copy-up did not wait for the overwrite under way")
		}
		hold.open()
		old.Must(t)
		newer.Must(t)
		sealed(t, p)
		want(t, rig.Disk, 'o', 0, 512)
		want(t, rig.Disk, 'a', 512, 512)
		want(t, rig.Disk, 'n', 1024, 512)
		want(t, rig.Disk, 'a', 1536, 4096-1536)
	})
}

// The same with a first write of the whole block on the old view, which holds the guard, and with
// one that is a copy-up itself.
func TestCopyUpAfterPromotionWaitsForOldFirstWrite(t *testing.T) {
	for _, n := range []int{4096, 512} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
				hold := setTrap(t, x, "write", "0000.data")
				old := startWrite(rig.Disk, 'o', 0, n)
				<-hold.caught
				p := promote(t, rig)
				late := startWrite(rig.Disk, 'n', 1024, 512)
				if late.Ends() {
					t.Error("the copy-up did not wait for the first write under way")
				}
				hold.open()
				old.Must(t)
				late.Must(t)
				sealed(t, p)
				want(t, rig.Disk, 'o', 0, 512)
				want(t, rig.Disk, 'n', 1024, 512)
			})
		})
	}
}

// Writes of whole blocks, overwrites and reads go on while an old write hangs: only copy-ups wait.
func TestPromotionBlocksNoOtherRequest(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 8192)
	hold := setTrap(t, x, "write", "0000.data")
	old := startWrite(rig.Disk, 'o', 0, 512)
	<-hold.caught
	p := promote(t, rig)
	write(t, rig.Disk, 'w', 4096, 4096) // another block, whole
	write(t, rig.Disk, 'x', 4096, 512)  // hit
	write(t, rig.Disk, 'y', 0, 4096)    // the same block, whole
	want(t, rig.Disk, 'x', 4096, 512)
	want(t, rig.Disk, 'w', 4608, 512)
	want(t, rig.Disk, 'y', 0, 4096)
	hold.open()
	old.Must(t)
	sealed(t, p)
	want(t, rig.Disk, 'y', 0, 4096) // the old write may lose, the completed one may not
}

// A write that waits for the guard on the old view finds the block owned by the new head
// afterwards: it is superseded and completes.
func TestOldFirstWriteFindsNewerOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		// Blocks 0 and 1, first write on the old view, held while it has the guard.
		hold := setTrap(t, x, "write", "0000.data")
		first := startWrite(rig.Disk, 'a', 0, 8192)
		<-hold.caught
		p := promote(t, rig)
		// New view: waits for the guard.
		second := startWrite(rig.Disk, 'b', 4096, 4096)
		if second.Ends() {
			t.Error("two first writes of one block at once")
		}
		hold.open()
		first.Must(t)
		second.Must(t)
		sealed(t, p)
		want(t, rig.Disk, 'a', 0, 4096)
		want(t, rig.Disk, 'b', 4096, 4096)
		tag, err := rig.OpenTag(1)
		test.Must(t, err)
		defer tag.Close()
		want(t, tag, 'a', 0, 8192)
	})
}

// Two writes of parts of one block that the head does not own: the second waits for the guard and
// then finds the block owned. It must look up the owner again and write its own part only: a
// copy-up would undo a third write that completed in between. (Rule: ownership is rechecked under
// the guard.)
func TestOwnershipIsRecheckedUnderTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		hold := setTrap(t, x, "write", "0000.data")
		first := startWrite(rig.Disk, 'a', 0, 512)
		<-hold.caught
		second := startWrite(rig.Disk, 'b', 512, 512)
		if second.Ends() {
			t.Error("two first writes of one block at once")
		}
		again := setTrap(t, x, "write", "0000.data")
		hold.open()
		first.Must(t)
		<-again.caught // the second, with all that it is going to write
		x.OnCall(nil)
		write(t, rig.Disk, 'c', 1024, 512)
		again.open()
		second.Must(t)
		want(t, rig.Disk, 'a', 0, 512)
		want(t, rig.Disk, 'b', 512, 512)
		want(t, rig.Disk, 'c', 1024, 512)
	})
}

// A write on the old view reaches a block that a write on the new view has taken as a whole
// meanwhile: it skips the block and completes.
func TestOldWriteIsSuperseded(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	write(t, rig.Disk, 'a', 0, 4096)
	hold := setTrap(t, x, "write", "0000.data")
	old := startWrite(rig.Disk, 'o', 0, 4096+512+8192) // block 0 a hit, 1 to 3 first writes
	<-hold.caught
	p := promote(t, rig)
	write(t, rig.Disk, 'n', 4096, 4096)
	write(t, rig.Disk, 'm', 3*4096, 4096)
	hold.open()
	old.Must(t)
	sealed(t, p)
	want(t, rig.Disk, 'o', 0, 4096)
	want(t, rig.Disk, 'n', 4096, 4096)
	want(t, rig.Disk, 'o', 8192, 4096)
	want(t, rig.Disk, 'm', 3*4096, 4096)
}

// Copy-ups of different sectors of one block must not overwrite each other with the old content.
// (Rule: guard.)
func TestTwoCopyUpsOfOneBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		hold := setTrap(t, x, "write", "0000.data")
		one := startWrite(rig.Disk, '1', 0, 512)
		<-hold.caught
		two := startWrite(rig.Disk, '2', 512, 512)
		if two.Ends() {
			t.Error("the second copy-up did not wait")
		}
		hold.open()
		one.Must(t)
		two.Must(t)
		want(t, rig.Disk, '1', 0, 512)
		want(t, rig.Disk, '2', 512, 512)
		want(t, rig.Disk, 0, 1024, 3072)
	})
}

// A copy-up that has read the old content must not write it over a whole-block write that completed
// meanwhile. (Rule: whole first writes hold the guard too.)
func TestCopyUpAgainstWholeBlockWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		hold := setTrap(t, x, "write", "0000.data")
		part := startWrite(rig.Disk, 'p', 1024, 512)
		<-hold.caught // has read, is about to write
		whole := startWrite(rig.Disk, 'w', 0, 4096)
		if whole.Ends() {
			t.Error("the whole-block write did not wait for the copy-up")
		}
		hold.open()
		part.Must(t)
		whole.Must(t)
		want(t, rig.Disk, 'w', 0, 4096)
	})
}

// The same against a discard.
func TestCopyUpAgainstDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
		hold := setTrap(t, x, "write", "0000.data")
		part := startWrite(rig.Disk, 'p', 1024, 512)
		<-hold.caught
		discard := test.Go(func() error {
			return do(rig.Disk, &cow.Request{Op: cow.OpDiscard,
				Ranges: []cow.Range{{Offset: 0, Length: 4096}}})
		})
		if discard.Ends() {
			t.Error("the discard did not wait for the copy-up")
		}
		hold.open()
		part.Must(t)
		discard.Must(t)
		want(t, rig.Disk, 0, 0, 4096)
	})
}

// While the data of a first write is being written, reads return the old content and a flush round
// makes no bit of it durable. (Rule: data, then bit, then index.)
func TestFirstWriteIsInvisibleUntilItsDataIsThere(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
	hold := setTrap(t, x, "write", "0000.data")
	done := startWrite(rig.Disk, 'w', 8192, 4096)
	<-hold.caught
	p := make([]byte, 4096)
	test.Must(t, test.Err(rig.Disk.ReadAt(p, 8192)))
	if c, err := cowtest.Identify(p, 16, nil); err != nil || len(c) != 1 ||
		c[0] != cowtest.BaseContent {
		t.Errorf("read during a first write: expected the base, found %v, %v", c, err)
	}
	test.Must(t, rig.Disk.Flush())
	if bit(t, rig, 0, 2) {
		t.Error("the bit is durable and its data is not written")
	}
	hold.open()
	done.Must(t)
	if bit(t, rig, 0, 2) {
		t.Error("the bit is in the map file without a flush")
	}
	test.Must(t, rig.Disk.Flush())
	if !bit(t, rig, 0, 2) {
		t.Error("the bit is not durable after a flush")
	}
	want(t, rig.Disk, 'w', 8192, 4096)
}

// A read on the view before a promotion sees a write that was acknowledged after it. (Rule: a
// reader that finds a newer owner takes a newer view.)
func TestOldReadFindsNewerOwner(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096, BaseSize: 1 << 20})
	// A read of two runs: block 0 from the base, held; block 1 from the head.
	write(t, rig.Disk, 'a', 4096, 4096)
	hold := setTrap(t, x, "read", "base")
	p := make([]byte, 8192)
	read := test.Go(func() error { _, err := rig.Disk.ReadAt(p, 0); return err })
	<-hold.caught
	done := promote(t, rig)
	write(t, rig.Disk, 'b', 4096, 4096)
	hold.open()
	read.Must(t)
	if got := string(p[4096:4097]); got != "b" {
		t.Errorf("block 1: expected the acknowledged write, found %q", got)
	}
	sealed(t, done)
}

// The former head's writable file is not closed while a read uses it.
func TestOldFileStaysOpenForReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
		write(t, rig.Disk, 'a', 0, 4096)
		hold := setTrap(t, x, "read", "0000.data")
		p := make([]byte, 4096)
		read := test.Go(func() error { _, err := rig.Disk.ReadAt(p, 0); return err })
		<-hold.caught
		done := promote(t, rig)
		test.Eventually(t, "the former head is sealed",
			func() bool { return rig.Disk.Stats().Unsealed == 0 })
		if test.Go(func() error { <-done.Done(); return nil }).Ends() {
			t.Error("the promotion has finished while a read is on the old view")
		}
		write(t, rig.Disk, 'b', 0, 4096)
		hold.open()
		read.Must(t)
		sealed(t, done)
		if c := strings.Count(string(p), "a"); c != 4096 {
			t.Errorf("expected the old content, found %d bytes of it", c)
		}
	})
}
