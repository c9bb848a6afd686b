package compare

import (
	"slices"
	"testing"

	"cowblk/integration/bench/compare/report"
)

// Every state gives each block to one layer at most, and shares it out as its name says.
func TestOwnedParts(t *testing.T) {
	const blocks = 1 << 16
	for _, o := range append(ownedDisks(), ownedOverlays()...) {
		parts := o.parts(blocks, o.layers)
		if len(parts) != o.layers {
			t.Errorf("%s: %d parts, expected %d", o.key, len(parts), o.layers)
		}
		expected := blocks / o.layers
		if o.key == report.HeadHalf || o.key == report.QcowHalf {
			expected = blocks / 2
		}
		seen := make([]bool, blocks)
		for n, part := range parts {
			if d := len(part) - expected; d*d > expected*expected/100 {
				t.Errorf("%s: layer %d owns %d blocks, expected about %d", o.key, n, len(part),
					expected)
			}
			if slices.IsSorted(part) {
				t.Errorf("%s: layer %d is written in order", o.key, n)
			}
			for _, b := range part {
				if seen[b] {
					t.Fatalf("%s: block %d is owned twice", o.key, b)
				}
				seen[b] = true
			}
		}
	}
}

// cowblk and qcow2 are compared in the same state.
func TestOwnedStatesAreTheSame(t *testing.T) {
	disks, overlays := ownedDisks(), ownedOverlays()
	for i, o := range overlays {
		for n, part := range o.parts(1000, 1) {
			if !slices.Equal(part, disks[i].parts(1000, 1)[n]) {
				t.Errorf("%s and %s differ", o.key, disks[i].key)
			}
		}
	}
}

// No two clients of a boot storm read the same block in their share, and none reads a block twice.
func TestRotations(t *testing.T) {
	const clients, share = 20, 51
	blocks := shuffled(1024*blockSize, 1)
	first := map[int]bool{}
	for i, order := range rotations(blocks, clients) {
		for _, b := range order[:share] {
			if first[b] {
				t.Errorf("client %d: block %d is in another's share", i, b)
			}
			first[b] = true
		}
		slices.Sort(order)
		if len(slices.Compact(order)) != 1024 {
			t.Errorf("client %d reads a block twice", i)
		}
	}
}
