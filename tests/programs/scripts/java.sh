# A program that is compiled, packed, and works with files by java.nio.
cat >Program.java <<'END'
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.*;
import java.nio.file.attribute.*;
import java.util.concurrent.TimeUnit;

public class Program {
    public static void main(String[] words) throws Exception {
        Path directory = Files.createDirectory(Path.of("watched"));
        try (WatchService service = FileSystems.getDefault().newWatchService()) {
            directory.register(service, StandardWatchEventKinds.ENTRY_CREATE);
            Files.writeString(directory.resolve("file"), "content");
            WatchKey key = service.poll(30, TimeUnit.SECONDS);
            System.out.println(key == null ? "nothing" : key.pollEvents().get(0).context());
        }
        try (FileChannel channel = FileChannel.open(Path.of("mapped"), StandardOpenOption.CREATE,
                StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            try (FileLock lock = channel.lock()) {
                ByteBuffer map = channel.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 20);
                map.put(1000, (byte) 65);
                System.out.println(lock.isValid() + " " + channel.size());
            }
            ByteBuffer read = ByteBuffer.allocate(1);
            channel.read(read, 1000);
            System.out.println((char) read.get(0));
        }
        Path file = directory.resolve("file");
        Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rwxr-x---"));
        UserDefinedFileAttributeView view =
                Files.getFileAttributeView(file, UserDefinedFileAttributeView.class);
        view.write("kind", ByteBuffer.wrap("value".getBytes()));
        System.out.println(view.list() + " " + Files.getAttribute(file, "unix:mode"));
        Files.move(file, Path.of("moved"), StandardCopyOption.ATOMIC_MOVE);
        Files.createLink(Path.of("linked"), Path.of("moved"));
        System.out.println(Files.isSameFile(Path.of("linked"), Path.of("moved")));
        try (var walk = Files.walk(Path.of("."))) {
            System.out.println(walk.map(Path::toString).sorted().toList());
        }
    }
}
END
javac Program.java
jar --create --file program.jar --main-class Program Program.class
mkdir run && cd run
java -Xmx128m -jar ../program.jar
