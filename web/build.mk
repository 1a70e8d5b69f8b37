# What is built from sources and committed. Included by the Makefile, whose folder is where it runs.
# Only who changes web/ needs Node: what it builds is committed, byte for byte the same on every machine.
web: web/node_modules/.installed
	npm --prefix web run --silent types > /dev/null
	npm --prefix web run --silent build -- --logLevel warn

kernel: # WebAssembly for the browser node, committed too (needs clang-14 and lld-14)
	web/kernel/build.sh

# What the wheel ships (ABI, bytecode) and docs/gas.md must be what these sources give; then all tests of them.
contracts: contracts/node_modules/.installed
	npm --prefix contracts --silent test

%/node_modules/.installed: %/package-lock.json
	npm --prefix $* ci --silent
	@touch $@

# The picture in README.md and docs/dashboard.md.
picture: $(STAMP)
	TUTTI_SCREENSHOTS=build $(BIN)/pytest -q tests/e2e/test_dashboard.py -k 'every_page and light and not phone and not wide'
	cp build/dashboard.png docs/dashboard.png
