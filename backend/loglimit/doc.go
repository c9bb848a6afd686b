// Package loglimit limits log lines that guests, front-ends and clients cause. Lines with the same
// message share a limit; the next line that is logged counts those that were dropped.
package loglimit
