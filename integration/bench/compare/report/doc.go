// Package report is what a run of the comparison comes to: samples by contender
// and workload, the ratios that the targets are about, and the tables and plots
// that show them. It measures nothing itself.
//
// A ratio is taken within each round, between two contenders that ran shortly
// after one another, and the median over the rounds is what counts: a machine
// that slows down for some rounds slows both.
package report
