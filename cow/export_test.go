package cow

// BeginSwap is the first half of Swap, SwapAll the second.
func BeginSwap(promotions ...*Promotion) (ok bool) {
	ok = true
	for _, p := range promotions {
		ok = p.beginSwap() && ok
	}
	return ok
}

func SwapAll(promotions ...*Promotion) { swapAll(promotions) }

// HoldSwap keeps the disk from being swapped or gated until release is called.
func (d *Disk) HoldSwap() (release func()) {
	d.mu.Lock()
	return d.mu.Unlock
}

// ViewChanged reports whether a view other than the first is in place.
func (d *Disk) ViewChanged() bool {
	v := d.view.Load()
	return v.seq > 1 || v.gate != nil
}
