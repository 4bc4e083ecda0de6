module github.com/iottunnel/iottunnel/bench

go 1.26.0
