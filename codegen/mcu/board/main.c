/* An example: one inference on an input of zeros, its first output printed. */
@INCLUDE@
#include "model.h"

static unsigned char workspace[@UPPER@_WORKSPACE_BYTES];
@BUFFERS@

int main(void) {
    const void *inputs[] = {@INPUTS@};
    void *outputs[] = {@OUTPUTS@};
    int status = @PREFIX@_run(inputs, outputs, workspace);
    if (status != @UPPER@_OK) {
        say(@PREFIX@_error(status));
        return status;
    }
    for (unsigned i = 0; i < @UPPER@_OUTPUT_0_BYTES && i < 32; i++) {
        static const char digits[] = "0123456789abcdef";
        unsigned char byte = ((const unsigned char *)outputs[0])[i];
        char text[4] = {digits[byte >> 4], digits[byte & 15], ' ', 0};
        say(text);
    }
    say("\n");
    return 0;
}
