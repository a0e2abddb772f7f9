# A program of several files by make, once more when one of them has changed, a library.
cat >Makefile <<'END'
CFLAGS = -O1 -Wall
program: main.o greet.o libanswer.so
	$(CC) -o $@ main.o greet.o -L. -lanswer -Wl,-rpath,'$$ORIGIN'
libanswer.so: answer.c
	$(CC) $(CFLAGS) -shared -fPIC -o $@ $<
main.o greet.o: greet.h
clean:
	rm -f *.o *.so program
END
printf '#include "greet.h"\nint answer(void);\nint main(void) { greet(answer()); return 3; }\n' >main.c
printf '#include <stdio.h>\n#include "greet.h"\nvoid greet(int n) { printf("greeted %%d\\n", n); }\n' >greet.c
echo 'void greet(int n);' >greet.h
echo 'int answer(void) { return 42; }' >answer.c
make
./program || echo "status $?"
make
sleep 0.05
echo 'int answer(void) { return 43; }' >answer.c
make
./program || echo "status $?"
make -s clean
ls
