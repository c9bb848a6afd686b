package crash

import "slices"

// Minimise looks for a shorter script that still fails. It leaves out half of the steps, a quarter,
// and so on down to single steps, as long as that helps. fails plays a life and returns its
// failure. It returns nil if the life does not fail or the script cannot be carried out. Minimise
// returns nil if not even the whole script fails again.
func Minimise(l *Life, fails func(*Life) *Failure) *Failure {
	const most = 120 // lives
	best := fails(l)
	if best == nil {
		return nil
	}
	tried := 0
	for size := len(l.Script) / 2; size >= 1; {
		shorter := false
		for from := 0; from < len(best.Life.Script) && tried < most; {
			s := best.Life.Script
			try := *l
			try.Script = slices.Concat(s[:from], s[min(len(s), from+size):])
			tried++
			if f := fails(&try); f != nil {
				best, shorter = f, true
			} else {
				from += size
			}
		}
		if !shorter || size > 1 {
			size /= 2
		}
	}
	return best
}
